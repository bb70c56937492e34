"""INQ: zero and powers of two, which multiply by shifts.

Reference:
    Zhou et al. (2017), "Incremental Network Quantization", https://arxiv.org/abs/1702.03044.
    Equation 1: the levels 0 and +-2^n for n2 <= n <= n1. Equation 2-3:
    `n1 = floor(log2(4 max|w| / 3))` and `n2 = n1 + 1 - 2^(b-1) / 2`. Equation 4: a weight between
    neighbours a < b becomes b from (a + b) / 2 on, which is the nearest level.

Deviations:
    Powers below 2^-24, which float16 does not hold, are left out. The incremental training of the
    paper is `compression.recover.progressive_freeze`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compression.primitives.weight_grids.levels import LevelGrid

LEAST_EXPONENT = -24


def fit(rows: Tensor, bits: int) -> LevelGrid:
    """Return the levels of a layer: one list for all rows."""
    greatest = max(float(rows.abs().max()), 2.0**LEAST_EXPONENT)
    first, last = exponents(greatest, bits)
    powers = 2.0 ** torch.arange(last, first + 1)
    return LevelGrid.of(torch.cat([-powers, powers.new_zeros(1), powers])[None])


def exponents(greatest: float, bits: int) -> tuple[int, int]:
    """Return n1 and n2.

    >>> exponents(1.0, 5)
    (0, -7)
    """
    first = math.floor(math.log2(4 * greatest / 3))
    first = max(first, LEAST_EXPONENT)
    return first, max(first + 1 - 2 ** (bits - 1) // 2, LEAST_EXPONENT)
