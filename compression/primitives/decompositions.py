"""Low-rank forms of a weight: factors, and the weight that they make together.

A weight is `n_out x n_in x kh x kw` (1 x 1 windows for linear layers); factors are float64 in the
shapes that the layers of `compression.primitives.split_layers` keep.

Reference:
    As in `compression.factors`; truncation by Eckart & Young (1936); tucker2 by higher-order SVD
    and orthogonal iteration, De Lathauwer et al. (2000), "On the Best Rank-1 and
    Rank-(R1, ..., RN) Approximation of Higher-Order Tensors"; whitening as in Zhang et al. (2016),
    section 2.2, https://arxiv.org/abs/1505.06798, with all inputs instead of responses, and
    Wang et al. (2024), "SVD-LLM", https://arxiv.org/abs/2403.07378, equation 2.

Deviations:
    Inputs' second moments are not centred, and responses pass no non-linearity. For `spatial` the
    whitened problem has no closed form: it is solved with the moments of one column of the window
    and the second factor is then refitted by least squares with all of them; where the unwhitened
    first factor does better after the same refit, it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compression.decisions import FactorizeMethod
from compression.factors import kronecker_shape
from compression.primitives.canonical import canonical_factors

_RIDGE = 1e-6
# Of the mean second moment, added to each: directions that the sample lacks stay determined.

_HOOI_SWEEPS = 5

Factors = tuple[Tensor, ...]


def decompose(
    method: FactorizeMethod,
    weight: Tensor,
    ranks: Sequence[int],
    *,
    moment: Tensor | None = None,
    generator: torch.Generator,
) -> Factors:
    """Return the factors of a weight.

    Args:
        method: Which form.
        weight: `n_out x n_in x kh x kw`, any float dtype and strides.
        ranks: As `compression.factors.ranks` returns them.
        moment: Second moments E[x x^T] of the layer's input patches in the order of a row of the
            weight, `n_in kh kw` square; minimise the error of the outputs on them instead of that
            of the weight. For `svd`, `channel` and `spatial`.
        generator: For the random start of `cp`.
    """
    tensor = weight.detach().to("cpu", torch.float64)
    match method:
        case "svd" | "channel":
            return _channel(tensor, ranks[0], moment)
        case "spatial":
            return _spatial(tensor, ranks[0], moment)
        case "tucker2":
            return _tucker2(tensor, ranks[0], ranks[1])
        case "cp":
            out, into, rows, columns = canonical_factors(tensor, ranks[0], generator)
            return (
                into.t()[:, :, None, None],
                rows.t()[:, None, :, None],
                columns.t()[:, None, None, :],
                out[:, :, None, None],
            )
        case "kronecker":
            return _kronecker(tensor, ranks[0])


def compose(method: FactorizeMethod, factors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Return the weight of `shape` (n_out, n_in, kh, kw) that the factors make, float64."""
    parts = [factor.detach().to("cpu", torch.float64) for factor in factors]
    match method:
        case "svd" | "channel":
            first, last = parts
            return torch.einsum("or,rixy->oixy", last[:, :, 0, 0], first)
        case "spatial":
            first, last = parts
            return torch.einsum("ory,rix->oixy", last[:, :, 0], first[..., 0])
        case "tucker2":
            first, core, last = parts
            return torch.einsum("op,pqxy,qi->oixy", last[:, :, 0, 0], core, first[:, :, 0, 0])
        case "cp":
            first, rows, columns, last = parts
            return torch.einsum(
                "or,ri,rx,ry->oixy",
                last[:, :, 0, 0],
                first[:, :, 0, 0],
                rows[:, 0, :, 0],
                columns[:, 0, 0],
            )
        case "kronecker":
            n_out, n_in, kh, kw = shape
            n1, n2, m1, m2 = kronecker_shape(n_in, n_out)
            inner = parts[0].reshape(-1, m2, n2, kh, kw)
            outer = parts[1].reshape(m1, n1, -1)
            weight = torch.einsum("air,rbjxy->abijxy", outer, inner).reshape(*shape)
            return weight * parts[2].reshape(-1, 1, 1, 1) if len(parts) > 2 else weight


def relative_error(weight: Tensor, other: Tensor) -> float:
    """Return the Frobenius norm of the difference, relative to that of `weight`; 0 for 0 / 0."""
    reference = weight.detach().to("cpu", torch.float64)
    scale = float(reference.norm())
    return float((reference - other).norm()) / scale if scale else float(other.norm())


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best `m x r` and `r x n` factors of a matrix, singular values halved between."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return _pad(u[:, :rank] * root, rank, 1), _pad(root[:, None] * vt[:rank], rank, 0)


def _pad(matrix: Tensor, size: int, axis: int) -> Tensor:
    """Append zeros where a matrix has fewer singular values than ranks were asked for."""
    missing = size - matrix.shape[axis]
    if missing <= 0:
        return matrix
    shape = list(matrix.shape)
    shape[axis] = missing
    return torch.cat([matrix, matrix.new_zeros(shape)], axis)


def _whitened(matrix: Tensor, rank: int, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of least |(M - A B) L|, L L^T the moments of what M multiplies."""
    root = torch.linalg.cholesky(_ridged(moment))
    left, right = truncated(matrix @ root, rank)
    return left, torch.linalg.solve_triangular(root, right, upper=False, left=False)


def _ridged(moment: Tensor) -> Tensor:
    scale = float(moment.diagonal().mean())
    ridge = _RIDGE * scale if scale > 0 else 1.0
    return moment + ridge * torch.eye(len(moment), dtype=moment.dtype)


def _channel(weight: Tensor, rank: int, moment: Tensor | None) -> Factors:
    matrix = weight.flatten(1)
    if moment is None:
        left, right = truncated(matrix, rank)
    else:
        left, right = _whitened(matrix, rank, moment.double())
    return right.reshape(-1, *weight.shape[1:]), left[:, :, None, None]


def _spatial(weight: Tensor, rank: int, moment: Tensor | None) -> Factors:
    n_out, n_in, kh, kw = weight.shape
    # Rows: outputs and columns of the window; columns: inputs and rows of the window.
    matrix = weight.permute(0, 3, 1, 2).reshape(n_out * kw, n_in * kh)
    plain_last, plain_first = truncated(matrix, rank)
    candidates = [(plain_last, plain_first)]
    if moment is not None:
        full = moment.double().reshape(n_in, kh, kw, n_in, kh, kw)
        column = torch.einsum("axybzy->axbz", full).reshape(n_in * kh, n_in * kh) / kw
        _, white_first = _whitened(matrix, rank, column)
        candidates = [(_refit(weight, first, full), first) for first in (white_first, plain_first)]
    finished = [
        (
            first.reshape(rank, n_in, kh, 1),
            last.reshape(n_out, kw, 1, rank).permute(0, 3, 2, 1).contiguous(),
        )
        for last, first in candidates
    ]
    if moment is None:
        return finished[0]
    errors = [
        output_error(weight, compose("spatial", factors, weight.shape), moment)
        for factors in finished
    ]
    return finished[errors.index(min(errors))]


def _refit(weight: Tensor, first: Tensor, moment: Tensor) -> Tensor:
    """Return the second factor `(n_out kw) x r` of least output error beside a given first one."""
    n_out, n_in, kh, kw = weight.shape
    rank = len(first)
    vertical = first.reshape(rank, n_in, kh)
    # Moments of the intermediate maps z = first * x at the kw columns, and theirs with x.
    cross = torch.einsum("rax,axybzw->rybzw", vertical, moment)
    inner = torch.einsum("rybzw,sbz->rysw", cross, vertical).reshape(rank * kw, rank * kw)
    target = torch.einsum("obzw,rybzw->ory", weight, cross).reshape(n_out, rank * kw)
    solved: Tensor = torch.linalg.solve(_ridged(inner), target.t()).t()
    return solved.reshape(n_out, rank, kw).permute(0, 2, 1).reshape(n_out * kw, rank)


def output_error(weight: Tensor, other: Tensor, moment: Tensor) -> float:
    """Return the mean squared error of the outputs, summed over channels: tr(D E[x x^T] D^T)."""
    difference = (weight.detach().to("cpu", torch.float64) - other).flatten(1)
    return float(((difference @ moment.double()) * difference).sum())


def _tucker2(weight: Tensor, rank_in: int, rank_out: int) -> Factors:
    into = _leading(weight.transpose(0, 1).flatten(1), rank_in)
    out = _leading(weight.flatten(1), rank_out)
    for _ in range(_HOOI_SWEEPS):
        into = _leading(torch.einsum("oixy,op->ipxy", weight, out).flatten(1), rank_in)
        out = _leading(torch.einsum("oixy,iq->oqxy", weight, into).flatten(1), rank_out)
    core = torch.einsum("oixy,op,iq->pqxy", weight, out, into)
    return into.t()[:, :, None, None], core, out[:, :, None, None]


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Return the first left singular vectors; zeros where there are fewer."""
    u, _, _ = torch.linalg.svd(matrix, full_matrices=False)
    return _pad(u[:, :rank], rank, 1)


def _kronecker(weight: Tensor, terms: int) -> Factors:
    n_out, n_in, kh, kw = weight.shape
    n1, n2, m1, m2 = kronecker_shape(n_in, n_out)
    # Van Loan & Pitsianis: the sum of Kronecker products is a low-rank matrix after reordering.
    rearranged = (
        weight.reshape(m1, m2, n1, n2, kh, kw)
        .permute(0, 2, 1, 3, 4, 5)
        .reshape(m1 * n1, m2 * n2 * kh * kw)
    )
    outer, inner = truncated(rearranged, terms)
    first = inner.reshape(terms * m2, n2, kh, kw)
    # Inputs of the outer factor are ordered by block of inputs, then by term.
    second = outer.reshape(m1, n1 * terms, 1, 1)
    return first, second
