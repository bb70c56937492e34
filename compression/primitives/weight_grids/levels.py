"""A grid that is a list of levels: every weight is the nearest of them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from compression.primitives.weight_layers import half


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LevelGrid:
    """Fixed levels; also what a scalar codebook is.

    Attributes:
        levels: `c x K` float32, ascending in each row, or `1 x K` for all rows of a layer.
    """

    levels: Tensor

    @staticmethod
    def of(levels: Tensor) -> LevelGrid:
        """Build a grid from levels in any order, rounded to float16."""
        return LevelGrid(torch.sort(half(levels), dim=1).values)

    def project(self, rows: Tensor) -> Tensor:
        """Return the nearest level of every weight; the lower one of two."""
        return self.levels.expand(len(rows), -1).gather(1, nearest_level(rows, self.levels))

    def refit(self, rows: Tensor) -> LevelGrid:
        """Return itself: the levels are fixed."""
        return self

    def most_values(self, weights: int) -> int:
        """Return the number of levels."""
        return self.levels.shape[1]


def nearest_level(rows: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest level of every weight, `c x n` int64.

    Args:
        rows: `c x n`.
        levels: `c x K` or `1 x K`, ascending in each row.
    """
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    if len(levels) == 1:
        return torch.searchsorted(middles[0].contiguous(), rows.contiguous())
    return torch.searchsorted(middles.contiguous(), rows.contiguous())
