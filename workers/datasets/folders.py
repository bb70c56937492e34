"""Class folders of pictures, packed as zip or tar or lying on disk.

`cat/1.png`, `dog/2.jpg`, ...: the folder is the class; labels follow the sorted class names. One
folder around everything is looked through. If the outermost folders are named `train`,
`calibration`, `search` (or `val`, `valid`, `validation`) and `test`, they declare the split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from compression.errors import DataRefused
from workers.datasets.archive import Entry
from workers.datasets.decode import Shape, decode_image
from workers.datasets.rows import Rows, check_size

SPLIT_FOLDERS: dict[str, int] = {
    "train": 0,
    "calibration": 1,
    "search": 2,
    "val": 2,
    "valid": 2,
    "validation": 2,
    "test": 3,
}
"""Part of an outermost folder, by its name."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Which picture belongs to which class and part.

    Attributes:
        entries: Pictures, in the archive's order.
        labels: One per picture, int64.
        declared: Part of each picture, int8, or None.
        names: Class names, sorted.
    """

    entries: tuple[Entry, ...]
    labels: NDArray[np.int64]
    declared: NDArray[np.int8] | None
    names: tuple[str, ...]


def list_folders(entries: Sequence[Entry]) -> Listing:
    """Read classes and parts off the names.

    Raises:
        DataRefused: A file lies in no class folder or too deep, or there is one class only.
    """
    paths = [_parts(entry.name) for entry in entries]
    if not paths:
        raise DataRefused("The archive holds no files")
    while all(len(path) > 2 for path in paths) and len({path[0] for path in paths}) == 1:
        if paths[0][0] in SPLIT_FOLDERS:
            break
        paths = [path[1:] for path in paths]
    declared = None
    if all(len(path) == 3 and path[0] in SPLIT_FOLDERS for path in paths):
        declared = np.array([SPLIT_FOLDERS[path[0]] for path in paths], dtype=np.int8)
        paths = [path[1:] for path in paths]
    for entry, path in zip(entries, paths, strict=True):
        if len(path) != 2:
            raise DataRefused(
                f"File {entry.name!r} does not lie in a class folder (expected is class/picture)"
            )
    names = tuple(sorted({path[0] for path in paths}))
    if len(names) < 2:
        raise DataRefused(f"There is one class folder only, {names[0]!r}; at least 2 are required")
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([number[path[0]] for path in paths], dtype=np.int64)
    return Listing(entries=tuple(entries), labels=labels, declared=declared, names=names)


def read_folders(listing: Listing, shape: Shape | None) -> Rows:
    """Decode every picture.

    Args:
        listing: What to read.
        shape: C, H, W that the network takes: pictures are scaled and their centre is cut out.
            None: all pictures must have one size, and keep it.

    Raises:
        DataRefused: A picture cannot be decoded or differs in size; the message names it.
    """
    images = decode_all(
        len(listing.entries),
        lambda row: (listing.entries[row].read(), repr(listing.entries[row].name)),
        shape,
    )
    return Rows(
        images=images, labels=listing.labels, declared=listing.declared, names=listing.names
    )


def decode_all(
    count: int, read: Callable[[int], tuple[bytes, str]], shape: Shape | None
) -> NDArray[np.uint8]:
    """Return `count x C x H x W` uint8 pixels.

    Args:
        count: Number of pictures, at least 1.
        read: Returns a picture's file and its name for messages, by row; called in order.
        shape: See `read_folders`.

    Raises:
        DataRefused: See `read_folders`.
    """
    images: NDArray[np.uint8] | None = None
    for row in range(count):
        data, where = read(row)
        pixels = decode_image(data, shape, where=where)
        if images is None:
            check_size(count, pixels.shape, 1, what=f"{count} images of {list(pixels.shape)}")
            images = np.empty((count, *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise DataRefused(
                f"Image {where} has shape {list(pixels.shape)}; the first has "
                f"{list(images.shape[1:])}, and all must agree where no input shape is given"
            )
        images[row] = pixels
    if images is None:
        raise DataRefused("The dataset holds no images")
    return images


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part != ".")
