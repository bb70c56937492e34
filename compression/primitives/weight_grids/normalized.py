"""WNQ: filters are normalised first, so that one even grid serves all filters of a layer.

Reference:
    Cai & Li (2019), "Weight Normalization based Quantization for Deep Neural Network
    Compression", https://arxiv.org/abs/1907.00593.

Deviations:
    A filter is divided by the root of its mean square. The step of the layer and then the scale
    of each filter have the least squared error; the paper trains with the normalisation in place.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from compression.primitives.weight_grids.uniform import best_steps, codes
from compression.primitives.weight_layers import half

LEAST = 2.0**-24


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class NormalizedGrid:
    """Integers times a scale per row; the integers are those of the normalised row.

    Attributes:
        step: `1 x 1`, of normalised weights.
        scale: `c x 1`, float16 numbers, > 0: the value of the integer 1.
        most: Greatest integer.
    """

    step: Tensor
    scale: Tensor
    most: int

    def project(self, rows: Tensor) -> Tensor:
        """Return the level of every weight: the one that is nearest once it is normalised."""
        return codes(rows / _deviation(rows), self.step, self.most) * self.scale

    def refit(self, rows: Tensor) -> NormalizedGrid:
        """Return the grid whose scales are best for the present codes."""
        return _scaled(rows, self.step, self.most)

    def most_values(self, weights: int) -> int:
        """Return the number of levels."""
        return 2 * self.most + 1


def fit(rows: Tensor, bits: int) -> NormalizedGrid:
    """Fit the step of the layer, then the scales of its rows."""
    most = 2 ** (bits - 1) - 1
    step = best_steps((rows / _deviation(rows)).reshape(1, -1), most)
    return _scaled(rows, step, most)


def _scaled(rows: Tensor, step: Tensor, most: int) -> NormalizedGrid:
    deviation = _deviation(rows)
    k = codes(rows / deviation, step, most)
    below = k.square().sum(1, keepdim=True)
    best = (rows * k).sum(1, keepdim=True) / below.clamp(min=1)
    scale = half(torch.where(below > 0, best, deviation * step)).clamp(min=LEAST)
    return NormalizedGrid(step, scale, most)


def _deviation(rows: Tensor) -> Tensor:
    return rows.square().mean(1, keepdim=True).sqrt().clamp(min=LEAST)
