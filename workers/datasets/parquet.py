"""Parquet tables with a column of encoded pictures and a column of labels.

The form that Hugging Face writes is understood: `image` is bytes or `{bytes, path}`, `label` an
integer, class names stand in the schema's metadata. An optional column `split` holds 0 to 3 or
the parts' names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from compression.errors import DataRefused
from workers.datasets.decode import Shape
from workers.datasets.folders import SPLIT_FOLDERS, decode_all
from workers.datasets.rows import Rows, to_declared, to_labels

IMAGE_COLUMNS = ("image", "img", "images")
LABEL_COLUMNS = ("label", "labels", "y", "fine_label")
SPLIT_COLUMN = "split"
BATCH_ROWS = 256


def read_parquet(stream: BinaryIO, shape: Shape | None, *, num_classes: int | None = None) -> Rows:
    """Read and check a whole table.

    Args:
        stream: The file.
        shape: C, H, W that the network takes; see `read_folders`.
        num_classes: If given, every label must be below it.

    Raises:
        DataRefused: The file is no Parquet table with these columns, or a value is wrong; the
            message names the row.
    """
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        columns = table.schema_arrow.names
        image = _column(columns, IMAGE_COLUMNS, required=True)
        label = _column(columns, LABEL_COLUMNS, required=False)
        count = table.metadata.num_rows
        labels = None
        if label is not None:
            labels = to_labels(_values(table, label), count, num_classes)
        declared = None
        if SPLIT_COLUMN in columns:
            declared = to_declared(_split_numbers(_values(table, SPLIT_COLUMN)), count)
        pictures = _pictures(table, image or "")
        images = decode_all(count, lambda row: (next(pictures), f"of row {row}"), shape)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataRefused(
            f"The file is no Parquet table, or is truncated or damaged: {error}"
        ) from error
    names = _class_names(table.schema_arrow.metadata, label)
    return Rows(images=images, labels=labels, declared=declared, names=names)


def _column(columns: list[str], wanted: tuple[str, ...], *, required: bool) -> str | None:
    found = next((name for name in wanted if name in columns), None)
    if found is None and required:
        raise DataRefused(
            f"The Parquet table has the columns {', '.join(columns)}; "
            f"one named {' or '.join(wanted)} is required"
        )
    return found


def _values(table: Any, column: str) -> NDArray[np.generic]:
    chunk = table.read(columns=[column]).column(column)
    if chunk.null_count:
        row = next(i for i, value in enumerate(chunk) if not value.is_valid)
        raise DataRefused(f"Column {column!r}: row {row} is null")
    values: NDArray[np.generic] = chunk.to_numpy()
    return values


def _split_numbers(values: NDArray[np.generic]) -> NDArray[np.generic]:
    if values.dtype.kind not in "OU":
        return values
    texts = [str(value) for value in values.tolist()]
    # An unknown name becomes -1, which the range check reports with its row.
    return np.array([SPLIT_FOLDERS.get(text, -1) for text in texts], dtype=np.int64)


def _pictures(table: Any, column: str) -> Iterator[bytes]:
    row = 0
    for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
        for value in batch.column(0).to_pylist():
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes) or not data:
                raise DataRefused(
                    f"Column {column!r}: row {row} holds no encoded picture (bytes); "
                    "paths to files elsewhere are not followed"
                )
            yield data
            row += 1


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...]:
    """Return the names that Hugging Face's writer leaves, or none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
