"""Euclidean projections of a weight onto the sets that compression asks for.

Each function here returns a projection: it maps a tensor to the nearest one of its set (the
least sum of squares), of the same shape, newly allocated; what lies in the set stays.
"Rows" and "columns" are those of the matrix `Co x (everything else)`: rows are filters, columns
are the same place in every filter. A joint projection maps the weights of several layers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compression.coupling import Coupling
from compression.errors import CompressionError
from compression.recover.masks import n_of_m_mask, without_smallest

Projection = Callable[[Tensor], Tensor]

JointProjection = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From weights by layer to the nearest ones of a set; all layers that are given come back."""


def largest_weights(kept: int) -> Projection:
    """Return the projection onto tensors with at most `kept` nonzeros: the largest stay."""
    _at_least_one("kept weights", kept)

    def project(weight: Tensor) -> Tensor:
        mask = without_smallest(weight.abs(), weight.numel() - kept)
        return weight.masked_fill(~mask, 0.0)

    return project


def largest_filters(kept: int) -> Projection:
    """Return the projection onto tensors with at most `kept` nonzero rows."""
    _at_least_one("kept filters", kept)

    def project(weight: Tensor) -> Tensor:
        rows = weight.reshape(weight.shape[0], -1)
        mask = without_smallest(rows.square().sum(1), rows.shape[0] - kept)
        return rows.masked_fill(~mask[:, None], 0.0).reshape(weight.shape)

    return project


def largest_columns(kept: int) -> Projection:
    """Return the projection onto tensors with at most `kept` nonzero columns."""
    _at_least_one("kept columns", kept)

    def project(weight: Tensor) -> Tensor:
        rows = weight.reshape(weight.shape[0], -1)
        mask = without_smallest(rows.square().sum(0), rows.shape[1] - kept)
        return rows.masked_fill(~mask, 0.0).reshape(weight.shape)

    return project


def largest_channels(coupling: Coupling, kept: int) -> JointProjection:
    """Return the projection onto weights with at most `kept` nonzero channels of a coupling.

    A channel is everything that goes with it: the filters that produce it and the columns of all
    its consumers; those with the largest squared norm together stay. Biases, norms and an
    attention layer's own parameters are not looked at.

    Args:
        coupling: Its taps say where each channel lies; layers that are not given are left out.
        kept: Channels that stay.
    """
    _at_least_one("kept channels", kept)

    def project(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = channel_squares(weights, coupling)
        gone = (~without_smallest(scores, coupling.channels - kept)).numpy()
        nearest = {layer: weight.clone() for layer, weight in weights.items()}
        for tap in coupling.taps:
            if tap.layer in nearest and gone.any():
                places = torch.from_numpy(tap.index[gone].ravel())
                nearest[tap.layer].index_fill_(int(tap.side == "in"), places, 0.0)
        return nearest

    return project


def channel_squares(weights: Mapping[str, Tensor], coupling: Coupling) -> Tensor:
    """Return `channels` float64 sums of squares of all the weights that belong to each channel."""
    total = torch.zeros(coupling.channels, dtype=torch.float64)
    for tap in coupling.taps:
        if tap.layer in weights:
            squares = weights[tap.layer].detach().double().square()
            lines = squares.movedim(int(tap.side == "in"), 0).flatten(1).sum(1)
            total += lines[torch.from_numpy(tap.index)].sum(1)
    return total


def n_of_m(n: int, m: int) -> Projection:
    """Return the projection onto tensors with at most n nonzeros of every m in a row."""

    def project(weight: Tensor) -> Tensor:
        return weight.masked_fill(~n_of_m_mask(weight.abs(), n, m), 0.0)

    return project


def uniform_grid(scale: Tensor | float, bits: int) -> Projection:
    """Return the projection onto multiples of `scale` from -(2^(bits-1) - 1) to the positive one.

    Args:
        scale: > 0, a number or a tensor that broadcasts (`Co x 1 x 1 x 1`: one per filter).
        bits: At least 2.
    """
    if bits < 2:
        raise CompressionError(f"A uniform grid has {bits} bits; at least 2 are required")
    most = 2 ** (bits - 1) - 1

    def project(weight: Tensor) -> Tensor:
        # Adding zero turns -0 into 0: one value, not two, for whoever counts them.
        nearest: Tensor = (weight / scale).round().clamp(-most, most) * scale + 0.0
        return nearest

    return project


def low_rank(rank: int) -> Projection:
    """Return the projection onto tensors whose matrix has at most rank `rank`.

    By the singular value decomposition (Eckart & Young, 1936).
    """
    _at_least_one("rank", rank)

    def project(weight: Tensor) -> Tensor:
        rows = weight.reshape(weight.shape[0], -1)
        left, values, right = torch.linalg.svd(rows, full_matrices=False)
        nearest: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
        return nearest.reshape(weight.shape)

    return project


def _at_least_one(what: str, value: int) -> None:
    if value < 1:
        raise CompressionError(f"A projection has {value} {what}; at least 1 is required")
