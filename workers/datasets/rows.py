"""What a reader takes out of a file, before it is split; and the checks that all readers share."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compression.errors import DataRefused
from workers.datasets.dataset import PARTS, Images

Layout = Literal["NHWC", "NCHW"]

MAX_DATA_BYTES = 16 << 30
"""Most bytes of decoded pixels: data lives in the memory of every worker."""

CHUNK_ROWS = 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The content of a dataset file.

    Attributes:
        images: `n x C x H x W` uint8 or float32.
        labels: `n` int64, or None.
        declared: `n` int8, places in `PARTS`, where the file says so; else None.
        names: Names of the classes by label, or empty.
        ambiguous: Whether the order of the axes was neither given nor to be told from the shape.
    """

    images: Images
    labels: NDArray[np.int64] | None = None
    declared: NDArray[np.int8] | None = None
    names: tuple[str, ...] = ()
    ambiguous: bool = False


CHANNEL_COUNTS = (1, 2, 3, 4)
"""Sizes that an axis of channels has; no image is that narrow."""


def infer_layout(shape: tuple[int, ...]) -> Layout | None:
    """Return the layout that a shape of four axes can only mean, or None if it is ambiguous."""
    if len(shape) != 4:
        return None
    first, last = shape[1] in CHANNEL_COUNTS, shape[3] in CHANNEL_COUNTS
    if first == last:
        return None
    return "NCHW" if first else "NHWC"


def to_images(x: NDArray[np.generic], layout: Layout) -> Images:
    """Return stored pixels as `n x C x H x W` uint8 or float32.

    Args:
        x: `n x H x W` grey, or four axes in `layout`; uint8, other integers within 0 to 255, or
            floats.
        layout: Order of the axes; not read for grey images without a channel axis.

    Raises:
        DataRefused: Wrong number of axes or type, or a pixel that is no number or out of range;
            the message names the row.
    """
    if x.ndim not in (3, 4):
        raise DataRefused(
            f"Array 'x' has shape {list(x.shape)}; images are N x H x W, or four axes ({layout})"
        )
    if len(x) == 0 or x.size == 0:
        raise DataRefused(f"Array 'x' has shape {list(x.shape)}: it holds no pixels")
    images = _to_pixels(x)
    if images.ndim == 3:
        grey: Images = images[:, None]
        return grey
    if layout == "NHWC":
        # Contiguous rows: batches are gathered by row thousands of times.
        channels_first: Images = images.transpose(0, 3, 1, 2).copy(order="C")
        return channels_first
    return images


def _to_pixels(x: NDArray[np.generic]) -> Images:
    if x.dtype == np.uint8:
        return x.astype(np.uint8, copy=False)
    if np.issubdtype(x.dtype, np.integer):
        for start in range(0, len(x), CHUNK_ROWS):
            chunk = x[start : start + CHUNK_ROWS].reshape(len(x[start : start + CHUNK_ROWS]), -1)
            outside = ((chunk < 0) | (chunk > 255)).any(axis=1)  # type: ignore[operator]
            if outside.any():
                row = start + int(outside.argmax())
                raise DataRefused(
                    f"Array 'x' of type {x.dtype}: row {row} has a pixel outside 0 to 255; "
                    "store other values as float32"
                )
        return x.astype(np.uint8)
    if np.issubdtype(x.dtype, np.floating):
        # A double beyond float32 becomes infinite, which the check reports; no warning is needed.
        with np.errstate(over="ignore"):
            values = x.astype(np.float32, copy=False)
        for start in range(0, len(values), CHUNK_ROWS):
            part = values[start : start + CHUNK_ROWS]
            finite = np.isfinite(part).reshape(len(part), -1).all(axis=1)
            if not finite.all():
                row = start + int(finite.argmin())
                bad = values[row][~np.isfinite(values[row])].flat[0]
                raise DataRefused(f"Array 'x': row {row} has a pixel that is {bad}")
        return values
    raise DataRefused(f"Array 'x' has type {x.dtype}; pixels are uint8 or floating point")


def to_labels(
    y: NDArray[np.generic], rows: int, num_classes: int | None = None
) -> NDArray[np.int64]:
    """Return labels as int64.

    Args:
        y: One integer per row.
        rows: Number of images.
        num_classes: If given, every label must be below it.

    Raises:
        DataRefused: Wrong type, shape or range; the message names the first offending row.
    """
    if not np.issubdtype(y.dtype, np.integer):
        raise DataRefused(f"Array 'y' has type {y.dtype}; labels are integers")
    if y.shape != (rows,):
        raise DataRefused(
            f"Array 'y' has shape {list(y.shape)}; there are {rows} images, so [{rows}] is expected"
        )
    labels = y.astype(np.int64)
    top = np.iinfo(np.int64).max if num_classes is None else num_classes - 1
    outside = (labels < 0) | (labels > top)
    if outside.any():
        row = int(outside.argmax())
        limit = "at least 0" if num_classes is None else f"0 to {top}"
        raise DataRefused(
            f"Array 'y': row {row} has the label {y[row]}; labels are {limit}"
            f" ({int(outside.sum())} of {rows} rows are outside)"
        )
    return labels


def to_declared(split: NDArray[np.generic], rows: int) -> NDArray[np.int8]:
    """Return a declared split as int8.

    Raises:
        DataRefused: Wrong type, shape or range; the message names the first offending row.
    """
    if not np.issubdtype(split.dtype, np.integer) or split.shape != (rows,):
        raise DataRefused(
            f"Array 'split' has type {split.dtype} and shape {list(split.shape)}; "
            f"{rows} integers are expected"
        )
    outside = (split < 0) | (split >= len(PARTS))  # type: ignore[operator]
    if outside.any():
        row = int(outside.argmax())
        meaning = ", ".join(f"{number} {name}" for number, name in enumerate(PARTS))
        raise DataRefused(f"Array 'split': row {row} has {split[row]}; parts are {meaning}")
    return split.astype(np.int8)


def check_size(count: int, shape: tuple[int, ...], itemsize: int, *, what: str) -> None:
    """Refuse data that would not fit into a worker's memory, before it is decoded.

    Raises:
        DataRefused: Naming the size and the limit.
    """
    total = itemsize * count * math.prod(shape)
    if total > MAX_DATA_BYTES:
        raise DataRefused(
            f"{what} would take {total} bytes in memory; at most {MAX_DATA_BYTES} are accepted"
        )
