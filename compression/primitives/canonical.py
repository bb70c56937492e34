"""Canonical polyadic decomposition of a 4-way tensor by alternating least squares.

Reference:
    Kolda & Bader (2009), "Tensor Decompositions and Applications", section 3.4 and figure 3.3,
    https://doi.org/10.1137/07070111X.

Deviations:
    A small ridge in every least-squares problem: without it, factors of opposite sign grow beyond
    bounds at the ranks used here, which exceed the tensor's dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SWEEPS = 60
_STALLED = 1e-5
# Relative fall of the error over one sweep below which another one buys nothing.
_RIDGE = 1e-6

_MODES = "oixy"


def canonical_factors(
    tensor: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four matrices, dimension x rank, whose outer products add up to about `tensor`.

    Norms are spread evenly over the four.

    Args:
        tensor: `n_out x n_in x kh x kw` float64.
        rank: Number of products.
        generator: Draws the start.
    """
    scale = float(tensor.norm())
    if scale == 0.0:
        return tuple(tensor.new_zeros(n, rank) for n in tensor.shape)  # type: ignore[return-value]
    target = tensor / scale
    factors = [_start(target, mode, rank, generator) for mode in range(4)]
    before = 2.0
    for _ in range(_SWEEPS):
        for mode in range(4):
            factors[mode] = _solve(target, factors, mode)
        error = _error(target, factors)
        if before - error < _STALLED * before:
            break
        before = error
    return _balanced(factors, scale)


def _start(target: Tensor, mode: int, rank: int, generator: torch.Generator) -> Tensor:
    """Leading singular vectors of the unfolding, and noise for the ranks beyond them."""
    noise = torch.randn(target.shape[mode], rank, generator=generator, dtype=torch.float64)
    unfolded = target.movedim(mode, 0).flatten(1)
    u, _, _ = torch.linalg.svd(unfolded, full_matrices=False)
    known = min(rank, u.shape[1])
    noise[:, :known] = u[:, :known]
    normed: Tensor = noise / noise.norm(dim=0)
    return normed


def _solve(target: Tensor, factors: list[Tensor], mode: int) -> Tensor:
    others = [m for m in range(4) if m != mode]
    gram = torch.ones(())
    for m in others:
        gram = gram * (factors[m].t() @ factors[m])
    # Contracting one factor at a time, the largest first, keeps intermediate tensors small.
    order = sorted(others, key=lambda m: -target.shape[m])
    left = _MODES
    product = torch.einsum(
        f"{left},{_MODES[order[0]]}r->{left.replace(_MODES[order[0]], '')}r",
        target,
        factors[order[0]],
    )
    left = left.replace(_MODES[order[0]], "")
    for m in order[1:]:
        rest = left.replace(_MODES[m], "")
        product = torch.einsum(f"{left}r,{_MODES[m]}r->{rest}r", product, factors[m])
        left = rest
    ridge = _RIDGE * float(gram.diagonal().mean())
    gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    solved: Tensor = torch.linalg.solve(gram, product.t())
    return solved.t()


def _error(target: Tensor, factors: list[Tensor]) -> float:
    return float((target - torch.einsum("or,ir,xr,yr->oixy", *factors)).norm())


def _balanced(factors: list[Tensor], scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    even = (norms.prod(0) * scale) ** 0.25
    out, into, rows, columns = (
        factor * torch.where(norm > 0, even / norm, torch.zeros_like(norm))
        for factor, norm in zip(factors, norms, strict=True)
    )
    return out, into, rows, columns
