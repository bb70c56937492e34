"""Value-aware grids: few large weights keep 16 bits, so that the rest need only few levels.

Reference:
    Park et al. (2018), "Value-aware Quantization for Training and Inference of Neural Networks",
    https://arxiv.org/abs/1804.07802, section 3: the largest 1 to 3 % in high precision, the small
    values on an even grid whose range they no longer stretch.

Deviations:
    The step of the rest, one per layer, has the least squared error; the paper's reaches to the
    greatest value of the rest.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from compression.primitives.weight_grids.uniform import UniformGrid, best_steps
from compression.primitives.weight_layers import half

OUTLIER_SHARE = 0.01


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class OutlierGrid:
    """A uniform grid, and float16 beyond a limit.

    Attributes:
        rest: Where the small weights lie; its step is `1 x 1`.
        limit: Scalar: greatest magnitude that is no outlier, a float16.
    """

    rest: UniformGrid
    limit: Tensor

    def project(self, rows: Tensor) -> Tensor:
        """Return outliers in float16 and everything else at its nearest level."""
        exact = half(rows)
        return torch.where(exact.abs() > self.limit, exact, self.rest.project(rows))

    def refit(self, rows: Tensor) -> OutlierGrid:
        """Choose the outliers anew, and the step that is best for the present codes."""
        limit = _limit(rows)
        small = rows.masked_fill(half(rows).abs() > limit, 0.0)
        return OutlierGrid(self.rest.refit(small), limit)

    def most_values(self, weights: int) -> int:
        """Return the number of levels and of outliers."""
        return self.rest.most_values(weights) + outliers(weights)


def outliers(weights: int) -> int:
    """Return how many of so many weights are kept in 16 bits.

    >>> outliers(2304)
    23
    """
    return math.floor(OUTLIER_SHARE * weights)


def fit(rows: Tensor, bits: int) -> OutlierGrid:
    """Take the outliers out of the whole layer and fit one step to the rest."""
    limit = _limit(rows)
    most = 2 ** (bits - 1) - 1
    # Outliers count as zeros, which every step reproduces exactly: they have no say.
    small = rows.masked_fill(half(rows).abs() > limit, 0.0)
    return OutlierGrid(UniformGrid(best_steps(small.reshape(1, -1), most), most), limit)


def _limit(rows: Tensor) -> Tensor:
    magnitudes = half(rows).abs().reshape(-1)
    return magnitudes.kthvalue(len(magnitudes) - outliers(len(magnitudes))).values
