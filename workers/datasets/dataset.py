"""Images in memory, with the part that each row belongs to."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compression.errors import DataRefused

PartName = Literal["train", "calibration", "search", "test"]

PARTS: tuple[PartName, ...] = ("train", "calibration", "search", "test")
"""The number of a part in a `split` array is its place here."""

Images = NDArray[np.uint8] | NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Every image, its label and its part.

    Attributes:
        images: `n x C x H x W`; uint8 pixels as uploaded, or float32 values.
        labels: `n` int64 in [0, num_classes), or None for unlabelled data.
        split: `n` int8, places in `PARTS`.
        num_classes: Classes that are named or occur; 0 for unlabelled data.
        names: Names of the classes by label, or empty.
    """

    images: Images
    labels: NDArray[np.int64] | None
    split: NDArray[np.int8]
    num_classes: int
    names: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """C, H, W of one image."""
        _, c, h, w = self.images.shape
        return c, h, w

    def __len__(self) -> int:
        return len(self.images)

    def part(self, name: PartName) -> tuple[Images, NDArray[np.int64] | None]:
        """Return the images and labels of one part, in the dataset's order.

        A view where the rows lie side by side, else a copy.

        Raises:
            DataRefused: There is no part of this name.
        """
        rows = self.rows(name)
        side_by_side = len(rows) > 0 and int(rows[-1] - rows[0]) + 1 == len(rows)
        where = slice(int(rows[0]), int(rows[-1]) + 1) if side_by_side else rows
        return self.images[where], None if self.labels is None else self.labels[where]

    def rows(self, name: PartName) -> NDArray[np.int64]:
        """Return the places of a part's rows, ascending int64.

        Raises:
            DataRefused: There is no part of this name.
        """
        if name not in PARTS:
            raise DataRefused(f"No part is named {name!r}; there are {', '.join(PARTS)}")
        return np.flatnonzero(self.split == PARTS.index(name)).astype(np.int64)

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each part."""
        return {name: int((self.split == number).sum()) for number, name in enumerate(PARTS)}
