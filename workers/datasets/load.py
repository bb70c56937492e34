"""From a dataset artifact to images in memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from compression.errors import DataRefused
from workers.datasets.archive import folder_entries, open_archive
from workers.datasets.builtin import read_builtin
from workers.datasets.dataset import Dataset
from workers.datasets.decode import Shape
from workers.datasets.folders import list_folders, read_folders
from workers.datasets.npz import read_npz
from workers.datasets.parquet import read_parquet
from workers.datasets.rows import Layout, Rows
from workers.datasets.split import assign_parts
from workers.job import DatasetArtifact, DatasetFormat
from workers.store import ArtifactStore

IN_MEMORY_BYTES = 64 << 20
"""Uploaded files above this size are read through a temporary file."""

SCALED_FORMATS = ("folders", "parquet")
"""Formats whose pictures may have any size."""

DESCRIBED_SHAPE = (3, 32, 32)
"""To which these are decoded when only their being pictures is checked."""

SUFFIXES: dict[str, DatasetFormat] = {
    ".npz": "npz",
    ".parquet": "parquet",
    ".zip": "folders",
    ".tar": "folders",
    ".tgz": "folders",
    ".gz": "folders",
    ".bz2": "folders",
    ".xz": "folders",
}
"""Formats of operator-registered files."""


def load_dataset(
    artifact: DatasetArtifact,
    store: ArtifactStore,
    *,
    layout: Layout | None = None,
    input_shape: Shape | None = None,
    num_classes: int | None = None,
) -> Dataset:
    """Read, check and split a dataset: same artifact, same rows and parts.

    Args:
        artifact: What was registered.
        store: Where its file is.
        layout: Order of the axes of an array `x` (the model's `preprocessing.layout`); None
            takes what its shape says.
        input_shape: C, H, W that the network takes. Pictures in archives and tables are scaled
            and cut to it; arrays must have it. None leaves sizes as they are.
        num_classes: If given, every label must be below it.

    Raises:
        DataRefused: Naming what is wrong and where.
        BlobMissing: The store does not have the file.
    """
    rows = _rows(artifact, store, layout, input_shape, num_classes)
    if rows.ambiguous:
        raise DataRefused(
            "Array 'x' may be N x H x W x C or N x C x H x W; say which in preprocessing.layout"
        )
    found = tuple(rows.images.shape[1:])
    if input_shape is not None and found != tuple(input_shape):
        raise DataRefused(
            f"Images have shape {list(found)} (C, H, W); the model's input_shape is "
            f"{list(input_shape)}"
        )
    return to_dataset(rows, artifact)


def to_dataset(rows: Rows, artifact: DatasetArtifact) -> Dataset:
    """Split rows as the artifact says.

    Raises:
        DataRefused: A part is too small, or labels and class names disagree.
    """
    labels = rows.labels
    classes = 0 if labels is None else int(labels.max()) + 1
    if rows.names and classes > len(rows.names):
        raise DataRefused(f"Labels go up to {classes - 1}; there are {len(rows.names)} class names")
    return Dataset(
        images=rows.images,
        labels=labels,
        split=assign_parts(len(rows.images), labels, rows.declared, artifact.splits),
        num_classes=max(classes, len(rows.names)) if labels is not None else 0,
        names=rows.names,
    )


def describe_dataset(artifact: DatasetArtifact, store: ArtifactStore) -> dict[str, Any]:
    """Read the whole dataset once and return what people and checks want to know of it.

    Returns:
        `images`, `splits` (images by part), `labelled`, `num_classes` (None without labels),
        `class_names`, `dtype`, and `image_shape` (C, H, W); the last is None where pictures are
        scaled to the model's input, or where the order of the axes cannot be told.

    Raises:
        DataRefused: Naming what is wrong and where.
        BlobMissing: The store does not have the file.
    """
    scaled = artifact.format in SCALED_FORMATS
    rows = _rows(artifact, store, None, DESCRIBED_SHAPE if scaled else None, None)
    data = to_dataset(rows, artifact)
    unknown = scaled or rows.ambiguous
    return {
        "images": len(data),
        "splits": data.counts(),
        "labelled": data.labels is not None,
        "num_classes": data.num_classes or None,
        "class_names": list(data.names),
        "dtype": str(data.images.dtype),
        "image_shape": None if unknown else list(data.input_shape),
    }


def _rows(
    artifact: DatasetArtifact,
    store: ArtifactStore,
    layout: Layout | None,
    shape: Shape | None,
    num_classes: int | None,
) -> Rows:
    if artifact.format == "builtin":
        rows = read_builtin(artifact.name, artifact.splits)
    elif artifact.format == "path":
        rows = _read_path(Path(artifact.name), layout, shape, num_classes)
    else:
        with _blob(artifact, store) as stream:
            rows = read_stream(stream, artifact.format, layout, shape, num_classes)
    return rows


def read_stream(
    stream: BinaryIO,
    format_: DatasetFormat,
    layout: Layout | None,
    shape: Shape | None,
    num_classes: int | None,
) -> Rows:
    """Read an uploaded file whole; see `load_dataset`.

    Raises:
        DataRefused: Naming what is wrong and where.
    """
    match format_:
        case "npz":
            return read_npz(stream, layout=layout, num_classes=num_classes)
        case "folders":
            with open_archive(stream) as entries:
                return read_folders(list_folders(entries), shape)
        case "parquet":
            return read_parquet(stream, shape, num_classes=num_classes)
        case _:
            raise DataRefused(f"Format {format_!r} is not that of an uploaded file")


def _read_path(
    path: Path, layout: Layout | None, shape: Shape | None, num_classes: int | None
) -> Rows:
    """Read what an operator registered: a file of a known suffix, or class folders on disk."""
    if path.is_dir():
        return read_folders(list_folders(folder_entries(path)), shape)
    if path.suffix not in SUFFIXES:
        raise DataRefused(f"{path} is no folder and ends in none of {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as stream:
            return read_stream(stream, SUFFIXES[path.suffix], layout, shape, num_classes)
    except FileNotFoundError:
        raise DataRefused(f"{path} does not exist on this machine") from None


@contextlib.contextmanager
def _blob(artifact: DatasetArtifact, store: ArtifactStore) -> Iterator[BinaryIO]:
    """Give the uploaded file as a seekable stream."""
    if artifact.data is None:
        raise DataRefused(f"Format {artifact.format!r} needs an uploaded file; there is none")
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES) as stream:
        for chunk in store.stream(artifact.data):
            stream.write(chunk)
        stream.seek(0)
        # The spooled file has every method of BinaryIO, but not its type.
        yield stream  # type: ignore[misc]
