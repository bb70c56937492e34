"""LQ-Nets: levels that are sums of learned numbers with either sign.

Reference:
    Zhang et al. (2018), "LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep
    Neural Networks", https://arxiv.org/abs/1807.10029. Equation 6: the levels are `v . e` for
    all e in {-1, 1}^K. Algorithm 1: alternate codes (nearest level) and basis, equation 9:
    `v = (B B^T)^-1 B w`. Section 3.3: one alternation per training step, whose basis enters a
    moving average with 0.9. One basis per output channel.

Deviations:
    The pseudo-inverse stands where codes of a row do not span all K directions. Levels are
    rounded to float16. The alternation starts from even levels, fitted to each row.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from compression.primitives.weight_grids.levels import LevelGrid, nearest_level
from compression.primitives.weight_grids.uniform import CLIPS

ALTERNATIONS = 20
MOVING_AVERAGE = 0.9


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LearnedBasisGrid:
    """Sums of `bits` numbers with either sign.

    Attributes:
        basis: `c x bits` float32, not rounded.
    """

    basis: Tensor

    def project(self, rows: Tensor) -> Tensor:
        """Return the nearest level of every weight."""
        return LevelGrid.of(self.basis @ signs(self.basis.shape[1]).T).project(rows)

    def refit(self, rows: Tensor) -> LearnedBasisGrid:
        """Return the moving average of the basis and the one that is best for present codes."""
        found = alternate(rows, self.basis)
        return LearnedBasisGrid(MOVING_AVERAGE * self.basis + (1 - MOVING_AVERAGE) * found)

    def most_values(self, weights: int) -> int:
        """Return the number of levels."""
        return int(2 ** self.basis.shape[1])


def fit(rows: Tensor, bits: int) -> LearnedBasisGrid:
    """Fit one basis per row, starting from the even levels with the least squared error."""
    # Sums of these powers with either sign are all odd numbers up to 2^bits - 1.
    basis = _even_spacing(rows, bits) / 2 * 2.0 ** torch.arange(bits)
    for _ in range(ALTERNATIONS):
        basis = alternate(rows, basis)
    return LearnedBasisGrid(basis)


def _even_spacing(rows: Tensor, bits: int) -> Tensor:
    """Return the distance, `c x 1`, of the best `2^bits` even levels without a zero.

    Tried are those whose greatest level is a share of the row's greatest magnitude. A start that
    reaches too far leaves levels unused, and no alternation brings them back.
    """
    most = 2 ** (bits - 1) - 0.5
    greatest = rows.abs().amax(1, keepdim=True).clamp(min=2.0**-24)
    best: Tensor = greatest / most
    error = torch.full_like(best, torch.inf)
    for clip in CLIPS:
        spacing = greatest * (clip / most)
        codes = ((rows / spacing).floor() + 0.5).clamp(-most, most)
        found = (rows - codes * spacing).square().sum(1, keepdim=True)
        best = torch.where(found < error, spacing, best)
        error = torch.minimum(found, error)
    return best


def signs(bits: int) -> Tensor:
    """Return all of {-1, 1}^bits, `2^bits x bits` float32."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits)))


def alternate(rows: Tensor, basis: Tensor) -> Tensor:
    """Return the basis with the least squared error for the codes that `basis` gives.

    Args:
        rows: `c x n` float32.
        basis: `c x bits` float32.

    Returns:
        `c x bits` float32: `(B B^T)^+ B w` for the codes B, `bits x n`, of each row.
    """
    every = signs(basis.shape[1])
    levels, order = torch.sort(basis @ every.T, dim=1)
    codes = nearest_level(rows, levels)
    ordered = every[order].double()  # c x 2^bits x bits
    zeros = torch.zeros(levels.shape, dtype=torch.float64)
    counts = zeros.scatter_add(1, codes, torch.ones_like(rows, dtype=torch.float64))
    sums = zeros.scatter_add(1, codes, rows.double())
    gram = torch.einsum("cl,cli,clj->cij", counts, ordered, ordered)
    moments = torch.einsum("cl,cli->ci", sums, ordered)
    inverse = torch.linalg.pinv(gram, hermitian=True)
    return torch.einsum("cij,cj->ci", inverse, moments).float()
