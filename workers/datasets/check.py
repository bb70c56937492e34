"""Whether an uploaded dataset is acceptable, for the process that answers requests: no torch."""

from __future__ import annotations

from pathlib import Path

from compression.errors import DataRefused
from workers.datasets.archive import open_archive
from workers.datasets.builtin_names import check_builtin
from workers.datasets.decode import Shape, decode_image
from workers.datasets.folders import Listing, list_folders
from workers.datasets.npz import read_npz
from workers.datasets.rows import Layout
from workers.datasets.split import assign_parts, check_shares
from workers.job import DatasetArtifact

DECODED_PICTURES = 16
"""Pictures of an archive that are decoded while the uploader waits; a worker decodes them all."""

PARQUET_MARK = b"PAR1"


def check_dataset(
    artifact: DatasetArtifact,
    path: Path | None,
    num_classes: int | None = None,
    *,
    input_shape: Shape | None = None,
    layout: Layout | None = None,
) -> None:
    """Refuse a dataset that cannot be used, as far as can be told while the uploader waits.

    An array file is read whole: every pixel, label and split. Of an archive every name and size
    is checked and some pictures are decoded; of a table the frame. What is left is found by the
    scan in a worker.

    Args:
        artifact: What is being registered.
        path: The uploaded file; None for built-in names and operator paths.
        num_classes: If given, every label must be below it.
        input_shape: If given, C, H, W that arrays must have.
        layout: Order of the axes of an array; None takes what its shape says.

    Raises:
        DataRefused: Naming the row, the value and the limit.
    """
    check_shares(artifact.splits)
    if artifact.format == "builtin":
        check_builtin(artifact.name)
        return
    if artifact.format == "path":
        if not Path(artifact.name).is_absolute():
            raise DataRefused(f"Path {artifact.name!r} is not absolute")
        return
    if path is None or path.stat().st_size == 0:
        raise DataRefused(f"Format {artifact.format!r} needs a file; it is missing or empty")
    match artifact.format:
        case "npz":
            _check_npz(artifact, path, num_classes, input_shape, layout)
        case "folders":
            _check_folders(artifact, path, num_classes)
        case "parquet":
            _check_parquet(path)


def _check_npz(
    artifact: DatasetArtifact,
    path: Path,
    num_classes: int | None,
    input_shape: Shape | None,
    layout: Layout | None,
) -> None:
    with path.open("rb") as stream:
        rows = read_npz(stream, layout=layout, num_classes=num_classes)
    found = tuple(rows.images.shape[1:])
    if input_shape is not None and not rows.ambiguous and found != tuple(input_shape):
        raise DataRefused(
            f"Images have shape {list(found)} (C, H, W); the model's input_shape is "
            f"{list(input_shape)}"
        )
    assign_parts(len(rows.images), rows.labels, rows.declared, artifact.splits)


def _check_folders(artifact: DatasetArtifact, path: Path, num_classes: int | None) -> None:
    with path.open("rb") as stream, open_archive(stream) as entries:
        listing = list_folders(entries)
        if num_classes is not None and len(listing.names) > num_classes:
            raise DataRefused(
                f"There are {len(listing.names)} class folders; num_classes is {num_classes}"
            )
        assign_parts(len(listing.labels), listing.labels, listing.declared, artifact.splits)
        _decode_some(listing)


def _decode_some(listing: Listing) -> None:
    step = max(1, len(listing.entries) // DECODED_PICTURES)
    for entry in listing.entries[::step]:
        decode_image(entry.read(), None, where=repr(entry.name))


def _check_parquet(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(-4, 2)
        if head != PARQUET_MARK or stream.read(4) != PARQUET_MARK:
            raise DataRefused(
                "The file is no Parquet table, or is truncated: it does not begin and end "
                "with 'PAR1'"
            )
