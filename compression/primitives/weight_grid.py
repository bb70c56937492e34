"""Integer grids of layer weights: symmetric, one scale per output channel.

A weight w of output channel c is stored as the integer q in [-top, top], w ~ scale_c * q, with
top = 2^(bits - 1) - 1: 127 for 8 bits, 7 for 4. Grids of fewer than 8 bits are stored in int8
tensors, too; they are small only when coded.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

Weights = NDArray[np.float32]

# Shares of the largest weight that are tried as the edge of a grid with few bits.
_EDGES = np.linspace(0.35, 1.0, 40)
# A weight lies on a grid if it is this near to it, in steps: float32 arithmetic after rounding
# (folding BatchNorm) moves it by some 1e-5.
_ON_GRID = 1e-3
# A grid with more positive levels than this is not worth telling from 8 bits.
_COARSEST_TOP = 63
_FIRST_LOOK = 16


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class GridWeight:
    """The weights of one layer as integers.

    Attributes:
        integers: int8, of the weight's shape.
        scales: float32, one per output channel.
        axis: The dimension of the output channels.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    @property
    def values(self) -> Weights:
        """The weights that the integers stand for, float32."""
        return self.integers * _along(self.scales, self.axis, self.integers.ndim)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class WeightedNode:
    """A node of a float graph whose second input is a constant weight.

    Attributes:
        node: A Conv, Gemm or MatMul.
        weight: Name of its weight.
        values: The weight.
        axis: The weight's dimension of output channels.
    """

    node: NodeProto
    weight: str
    values: Weights
    axis: int


def weighted_nodes(model: ModelProto) -> list[WeightedNode]:
    """Return the nodes whose weights are quantized, in graph order."""
    tensors = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in tensors:
            values = numpy_helper.to_array(tensors[node.input[1]])
            if values.ndim >= 2:
                axis = channel_axis(node, values.ndim)
                found.append(WeightedNode(node, node.input[1], values, axis))
    return found


def channel_axis(node: NodeProto, ndim: int) -> int:
    """Return which dimension of the weight of a Conv, Gemm or MatMul counts output channels."""
    transposed = any(a.name == "transB" and a.i == 1 for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else ndim - 1


def top_of(bits: int) -> int:
    """Return the largest integer of a symmetric grid of `bits` bits."""
    return (1 << (bits - 1)) - 1


def grid_scales(weight: Weights, axis: int, bits: int = 8) -> NDArray[np.float32]:
    """Return one scale per output channel; 1 for channels of zeros.

    With 8 bits the largest weight is the edge of the grid. With fewer, the edge is the share of
    it with the least squared error of the rounded weights, one of 40: few levels are better
    spent on the many small weights.
    """
    rows = _rows(weight, axis)
    top = top_of(bits)
    largest = np.abs(rows).max(axis=1)
    full = np.where(largest > 0, largest / top, 1.0)
    if bits == 8:
        return full.astype(np.float32)
    best, least = full, np.full(len(rows), np.inf)
    for edge in _EDGES:
        scales = full * edge
        rounded = np.clip(np.rint(rows / scales[:, None]), -top, top) * scales[:, None]
        error = np.square(rounded - rows).sum(axis=1)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best.astype(np.float32)


def round_weight(
    weight: Weights, axis: int, bits: int = 8, scales: NDArray[np.float32] | None = None
) -> GridWeight:
    """Return the nearest integers, on the grid of `grid_scales` or on the one given."""
    scales = grid_scales(weight, axis, bits) if scales is None else scales
    steps = weight / _along(scales, axis, weight.ndim)
    top = top_of(bits)
    return GridWeight(np.clip(np.rint(steps), -top, top).astype(np.int8), scales, axis)


def found_grid(weight: Weights, axis: int) -> GridWeight | None:
    """Return the integers of weights that already lie on coarse grids; None if no channel does.

    Weights that were rounded to few bits keep their few values this way, where the 8-bit grid
    spanned by the largest weight would round them again. A channel without such a grid gets 8
    bits.
    """
    rows = _rows(weight, axis)
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, largest / 127.0, 1.0)
    open_rows = np.flatnonzero(largest > 0)
    found = False
    for top in range(1, _COARSEST_TOP + 1):
        candidates = open_rows
        for columns in (slice(_FIRST_LOOK), slice(None)):
            steps = rows[candidates, columns] * (top / largest[candidates])[:, None]
            candidates = candidates[(np.abs(steps - np.rint(steps)) < _ON_GRID).all(axis=1)]
        if len(candidates):
            scales[candidates] = largest[candidates] / top
            open_rows = np.setdiff1d(open_rows, candidates)
            found = True
    return round_weight(weight, axis, 8, scales.astype(np.float32)) if found else None


def _rows(weight: Weights, axis: int) -> NDArray[np.float64]:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)


def _along(scales: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    shape = [1] * ndim
    shape[axis] = -1
    return scales.reshape(shape)
