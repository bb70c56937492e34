"""Datasets by name: scikit-learn's digits, and torchvision's where the machine can download."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np

from compression.errors import DataRefused
from workers.datasets.builtin_names import check_builtin
from workers.datasets.rows import Rows
from workers.datasets.split import halves
from workers.job import Splits

CACHE_VARIABLE = "XDG_CACHE_HOME"


def read_builtin(name: str, splits: Splits) -> Rows:
    """Return a built-in dataset.

    Where the data comes in an official training and test part, trained networks have seen the
    whole first: that becomes `train` and `calibration`, and the official test part is divided
    into halves for `search` and `test`.

    Args:
        name: In `BUILTIN_DATASETS`.
        splits: Seed and shares of that division.

    Raises:
        DataRefused: The name is unknown, or the data cannot be downloaded.
    """
    check_builtin(name)
    return _digits() if name == "digits" else _torchvision(name, splits)


def _digits() -> Rows:
    # scikit-learn takes a second to import and is needed for this one name.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    return Rows(images=images, labels=labels, names=tuple(str(digit) for digit in range(10)))


def _torchvision(name: str, splits: Splits) -> Rows:
    # torchvision imports torch: readers of files, and processes that must stay light, do without.
    import torchvision.datasets

    classes = {
        "cifar10": torchvision.datasets.CIFAR10,
        "cifar100": torchvision.datasets.CIFAR100,
        "mnist": torchvision.datasets.MNIST,
    }
    folder = _cache_folder()
    try:
        with (folder / f"{name}.lock").open("w") as lock:
            # Workers start together; one downloads, the others wait and find the files.
            fcntl.flock(lock, fcntl.LOCK_EX)
            both = [
                classes[name](str(folder), train=train, download=True) for train in (True, False)
            ]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataRefused(
            f"Dataset {name!r} is not in {folder} and cannot be downloaded here ({reason}); "
            "upload it as .npz instead"
        ) from error
    pixels = np.concatenate([np.asarray(part.data, dtype=np.uint8) for part in both])
    labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in both])
    images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    declared = np.zeros(len(labels), dtype=np.int8)
    start = len(both[0].data)
    declared[start:] = halves(labels[start:], splits.seed)
    return Rows(
        images=np.ascontiguousarray(images),
        labels=labels,
        declared=declared,
        names=tuple(str(text) for text in both[0].classes),
    )


def _cache_folder() -> Path:
    root = os.environ.get(CACHE_VARIABLE) or str(Path.home() / ".cache")
    folder = Path(root) / "paretopress" / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
