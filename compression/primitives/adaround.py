"""Adaptive rounding: which of its two neighbouring integers each weight takes is learned.

Reference:
    Nagel et al. (2020), "Up or Down? Adaptive Rounding for Post-Training Quantization",
    https://arxiv.org/abs/2004.10568: soft rounding by a rectified sigmoid (equations 22 and 23),
    the regulariser 1 - |2h - 1|^beta with beta annealed (equation 24), and asymmetric
    reconstruction of a layer's float outputs from inputs of the already rounded layers before it
    (equation 25).

Deviations:
    The outputs are reconstructed before the activation function. The squared error is then a
    quadratic form of the weights, so it is summed up once over all calibration inputs (second
    moments of the layer's inputs) and every step sees them all: some hundred steps do instead of
    ten thousand on random batches. Activations are float while rounding is learned. An output
    channel whose learned rounding is not better than the nearest one keeps the nearest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor
from torch.nn import functional

from compression.primitives.node_walk import NodeWalk
from compression.primitives.weight_grid import (
    GridWeight,
    WeightedNode,
    found_grid,
    round_weight,
    top_of,
    weighted_nodes,
)

# Of the rectified sigmoid h(v) = clip((zeta - gamma) sigmoid(v) + gamma, 0, 1).
_ZETA, _GAMMA = 1.1, -0.1
_STEPS = 300
_LEARNING_RATE = 0.05
# Steps without the regulariser, as a share of all.
_FREE_SHARE = 0.2
_BETA = (20.0, 2.0)
# Weight of the regulariser, per weight, against an error of nearest rounding of 1 per weight.
_LAMBDA = 1.0
# Positions (pixels of output, rows of a linear layer) that the second moments are taken over.
_POSITIONS = 16384
# Floating point operations spent on one layer: about a second.
_OPERATIONS = 2e10
_FEWEST_STEPS = 20


def learn_rounding(
    model: ModelProto,
    inputs: NDArray[np.float32],
    *,
    bits: Mapping[str, int] | None = None,
    keep_float: Collection[str] = (),
    seed: int = 0,
) -> dict[str, GridWeight]:
    """Return learned integers for the weights of a float graph, by the name of the weight.

    Args:
        model: A float graph; it stays as it is.
        inputs: `n x C x H x W` float32, preprocessed.
        bits: Of the weights of nodes, by node name; 8 where nothing is said.
        keep_float: Nodes that are not rounded.
        seed: Of the choice of positions.

    Weights that already lie on a coarse grid stay, and layers whose outputs cannot be
    reconstructed here (not two-dimensional convolutions, weights used twice) are rounded to
    the nearest.
    """
    layers = {layer.node.name: layer for layer in weighted_nodes(model)}
    uses = [layer.weight for layer in layers.values()]
    generator = torch.Generator().manual_seed(seed)
    exact, rounded = NodeWalk(model, inputs), NodeWalk(model, inputs)
    learned: dict[str, GridWeight] = {}
    for node, _ in zip(exact, rounded, strict=True):
        layer = layers.get(node.name)
        if layer is None or node.name in keep_float:
            continue
        if layer.weight not in learned:
            asked = (bits or {}).get(node.name, 8)
            grid = found_grid(layer.values, layer.axis)
            if grid is None and uses.count(layer.weight) == 1 and _reconstructible(layer):
                value = node.input[0]
                pair = (_inputs(exact, value), _inputs(rounded, value))
                moments = second_moments(layer, *pair, generator)
                grid = adapt(layer, *moments, bits=asked)
            learned[layer.weight] = grid or round_weight(layer.values, layer.axis, asked)
        rounded.weights[layer.weight] = learned[layer.weight].values
        rounded.compute(node)
    return learned


def second_moments(
    layer: WeightedNode, exact: Tensor, found: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return E[x' x'^T] and E[x x'^T] of a layer's inputs x (float) and x' (rounded before).

    Args:
        layer: A Conv, Gemm or MatMul.
        exact: Inputs of the layer in the float graph.
        found: The same in the graph rounded so far.
        generator: Of the positions, where there are too many.

    Returns:
        Both `groups x k x k`, float32, with k weights per output channel.
    """
    positions = _position_count(layer, exact)
    keep = min(positions, max(1, _POSITIONS // len(exact)))
    chosen = torch.randperm(positions, generator=generator)[:keep].sort().values
    x, y = (_columns(layer, values, chosen) for values in (exact, found))
    count = x.shape[2]
    return y @ y.mT / count, x @ y.mT / count


def output_error(weight: Tensor, rounded: Tensor, own: Tensor, cross: Tensor) -> Tensor:
    """Return E[(w x - w' x')^2] by output channel, up to what rounding cannot change.

    `E = w' M w'^T - 2 w C w'^T (+ E[(w x)^2])` with the moments M and C of `second_moments`.

    Args:
        weight: `groups x outputs of a group x k`.
        rounded: The same shape.
        own: M, `groups x k x k`.
        cross: C, `groups x k x k`.

    Returns:
        `groups x outputs of a group`.
    """
    return ((rounded @ own - 2.0 * (weight @ cross)) * rounded).sum(2)


def adapt(layer: WeightedNode, own: Tensor, cross: Tensor, *, bits: int) -> GridWeight:
    """Return the integers with the least output error that gradient descent finds.

    Args:
        layer: What is rounded.
        own: From `second_moments`.
        cross: From `second_moments`.
        bits: Of a weight.
    """
    nearest = round_weight(layer.values, layer.axis, bits)
    top = top_of(bits)
    weight, fallback, scales = (
        _by_group(layer, values, len(own))
        for values in (
            layer.values,
            nearest.values,
            np.broadcast_to(_spread(nearest), layer.values.shape),
        )
    )
    steps = weight / scales
    floor = steps.floor().clamp(-top, top - 1)
    share = (steps - floor).clamp(0.0, 1.0)
    start = ((share - _GAMMA) / (_ZETA - _GAMMA)).clamp(1e-4, 1 - 1e-4)
    variable = torch.logit(start).requires_grad_(True)
    noise = fallback - weight
    unit = weight.numel() / max(float(((noise @ own) * noise).sum()), 1e-20)
    count = _step_count(weight)
    optimizer = torch.optim.Adam([variable], lr=_LEARNING_RATE)
    with torch.enable_grad():
        for step in range(count):
            soft = ((_ZETA - _GAMMA) * torch.sigmoid(variable) + _GAMMA).clamp(0.0, 1.0)
            error = output_error(weight, (floor + soft) * scales, own, cross).sum() * unit
            place = (step / count - _FREE_SHARE) / (1 - _FREE_SHARE)
            if place >= 0:
                beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - place)
                error = error + _LAMBDA * (1 - (2 * soft - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    hard = (floor + (variable.detach() >= 0)) * scales
    better = output_error(weight, hard, own, cross) < output_error(weight, fallback, own, cross)
    chosen = torch.where(better[:, :, None], hard, fallback)
    return round_weight(_from_group(layer, chosen), layer.axis, bits, nearest.scales)


def _step_count(weight: Tensor) -> int:
    groups, outputs, k = weight.shape
    per_step = 4.0 * groups * outputs * k * k + 100.0 * weight.numel()
    return int(max(_FEWEST_STEPS, min(_STEPS, _OPERATIONS / per_step)))


def _spread(grid: GridWeight) -> NDArray[np.float32]:
    shape = [1] * grid.integers.ndim
    shape[grid.axis] = -1
    return grid.scales.reshape(shape)


def _by_group(layer: WeightedNode, values: NDArray[np.float32], groups: int) -> Tensor:
    rows = np.moveaxis(values, layer.axis, 0).reshape(
        groups, values.shape[layer.axis] // groups, -1
    )
    return torch.from_numpy(np.array(rows, np.float32))


def _from_group(layer: WeightedNode, values: Tensor) -> NDArray[np.float32]:
    shape = list(layer.values.shape)
    outputs = shape.pop(layer.axis)
    rows = values.numpy().reshape(outputs, *shape)
    return np.ascontiguousarray(np.moveaxis(rows, 0, layer.axis))


def _inputs(walk: NodeWalk, value: str) -> Tensor:
    return torch.from_numpy(np.array(walk.values[value], np.float32))


def _reconstructible(layer: WeightedNode) -> bool:
    node = layer.node
    if node.op_type == "Conv":
        automatic = any(
            a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in node.attribute
        )
        pads = _ints(layer, "pads", [0, 0, 0, 0])
        even = len(pads) == 4 and pads[:2] == pads[2:]
        return layer.values.ndim == 4 and even and not automatic
    transposed = any(a.name == "transA" and a.i == 1 for a in node.attribute)
    return layer.values.ndim == 2 and not transposed


def _ints(layer: WeightedNode, name: str, default: list[int]) -> list[int]:
    return next((list(a.ints) for a in layer.node.attribute if a.name == name), default)


def _unfolded(layer: WeightedNode, values: Tensor) -> Tensor:
    return functional.unfold(
        values,
        tuple(layer.values.shape[2:]),
        dilation=tuple(_ints(layer, "dilations", [1, 1])),
        padding=tuple(_ints(layer, "pads", [0, 0, 0, 0])[:2]),
        stride=tuple(_ints(layer, "strides", [1, 1])),
    )


def _position_count(layer: WeightedNode, values: Tensor) -> int:
    if layer.node.op_type == "Conv":
        return _unfolded(layer, values[:1, :1].contiguous()).shape[2]
    return values[0].numel() // values.shape[-1]


def _columns(layer: WeightedNode, values: Tensor, chosen: Tensor) -> Tensor:
    """Return what the weights of an output channel meet, `groups x k x (rows * positions)`."""
    if layer.node.op_type == "Conv":
        groups = next((int(a.i) for a in layer.node.attribute if a.name == "group"), 1)
        parts = [_unfolded(layer, row[None])[0, :, chosen] for row in values]
        stacked = torch.cat(parts, 1)
        return stacked.reshape(groups, -1, stacked.shape[1])
    rows = values.reshape(len(values), -1, values.shape[-1])[:, chosen]
    return rows.reshape(-1, values.shape[-1]).T[None]
