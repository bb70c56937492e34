"""The real data of tests and benchmarks: CIFAR-10 and trained ResNets, read where they lie."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PREPROCESSING = {"layout": "NHWC", "scale": 255.0, "mean": list(MEAN), "std": list(STD)}
CHECKPOINTS = {
    "cifar_resnet20": "cifar10_resnet20-12fca82f.th",
    "cifar_resnet32": "cifar10_resnet32-d509ac18.th",
    "cifar_resnet56": "cifar10_resnet56-4bfd9763.th",
}
CALIBRATION_IMAGES = 1000


def images(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the `n x 32 x 32 x 3` uint8 images of one mosaic, `test` or `train_0` to `train_4`."""
    with Image.open(folder / "cifar10" / f"{name}.webp") as mosaic:
        pixels = np.asarray(mosaic.convert("RGB"))
    tiles = pixels.reshape(100, 32, 100, 32, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(-1, 32, 32, 3))


def labels(folder: Path, split: str) -> NDArray[np.int64]:
    """Return the labels of `train` or `test`."""
    with np.load(folder / "cifar10" / "labels.npz") as file:
        found: NDArray[np.int64] = file[split].astype(np.int64)
    return found


def dataset_npz(folder: Path, train_files: int = 5) -> bytes:
    """Return the dataset as users upload it, with declared splits.

    The checkpoints have seen all training images, so search-validation is the even half of the
    test images and the held-out test the odd half; calibration is taken from training.
    """
    parts = [images(folder, f"train_{i}") for i in range(train_files)]
    x = np.concatenate([*parts, images(folder, "test")])
    n_train = 10_000 * train_files
    y = np.concatenate([labels(folder, "train")[:n_train], labels(folder, "test")])
    split = np.zeros(len(x), np.int64)
    split[:CALIBRATION_IMAGES] = 1
    split[n_train::2] = 2
    split[n_train + 1 :: 2] = 3
    buffer = io.BytesIO()
    np.savez(buffer, x=x, y=y, split=split)
    return buffer.getvalue()


def state_dict(folder: Path, architecture: str) -> dict[str, torch.Tensor]:
    """Return the trained weights of a CIFAR ResNet, without the wrapper's key prefix."""
    path = folder / "checkpoints" / CHECKPOINTS[architecture]
    loaded = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def weights(folder: Path, architecture: str) -> bytes:
    """Return the trained weights as safetensors."""
    return save({k: v.contiguous() for k, v in state_dict(folder, architecture).items()})
