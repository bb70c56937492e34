"""ONNX operators that become calls of functions: arithmetic, reductions, joining, padding."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compression.models.onnx_constants import cast_dtype
from compression.models.onnx_layers import Handler, linear
from compression.models.onnx_network import Network
from compression.models.onnx_values import Activation, Array, Constant, Operator, Value


def operand(op: Operator, net: Network, index: int, rank: int) -> Any:
    """Return an operand: an activation, a number, or a constant as a parameter.

    Args:
        op: An element-wise operator.
        net: Gets the parameter.
        index: Of the input.
        rank: Of the result; a number must not add axes to it.
    """
    value = op.given(index)
    if isinstance(value, Constant):
        array = op.weight(index)
        if array.size == 1 and array.ndim <= rank:
            return float(array.reshape(()))
        return net.operand(op, value)
    return op.activation(index)


def _rank(op: Operator) -> int:
    return max((v.rank for v in op.inputs if isinstance(v, Activation)), default=0)


def _binary(function: Callable[..., Any]) -> Handler:
    def handler(op: Operator, net: Network) -> Value:
        left, right = (operand(op, net, index, _rank(op)) for index in (0, 1))
        return net.call(function, left, right)

    return handler


def _add(op: Operator, net: Network) -> Value | Sequence[Value]:
    for here, other in ((0, 1), (1, 0)):
        x, bias = op.given(here), op.given(other)
        if isinstance(x, Activation) and isinstance(bias, Constant) and bias.is_fixed:
            array = op.weight(other)
            if array.size > 1 and net.absorb_bias(x, array):
                return x
    return _binary(operator.add)(op, net)


def _extreme(op: Operator, net: Network) -> Value:
    pick = torch.maximum if op.kind == "Max" else torch.minimum
    values = [operand(op, net, index, _rank(op)) for index in range(len(op.inputs))]
    tensors = [value for value in values if isinstance(value, Activation)]
    result = tensors[0]
    for value in tensors[1:]:
        result = net.call(pick, result, value)
    for number in (value for value in values if not isinstance(value, Activation)):
        bounds = {"min": number} if op.kind == "Max" else {"max": number}
        result = net.call(torch.clamp, result, **bounds)
    return result


def _matmul(op: Operator, net: Network) -> Value:
    value = op.given(1)
    if isinstance(value, Constant) and value.arrays[0].ndim == 2:
        return linear(op, net, op.weight(1).T, None)
    left, right = (
        net.operand(op, v) if isinstance(v, Constant) else op.activation(index)
        for index, v in enumerate(op.inputs[:2])
    )
    return net.call(torch.matmul, left, right)


def _unary(function: Callable[..., Any]) -> Handler:
    def handler(op: Operator, net: Network) -> Value:
        return net.call(function, op.activation(0))

    return handler


def _same(op: Operator, net: Network) -> Value:
    return op.activation(0)


def _cast(op: Operator, net: Network) -> Value:
    if cast_dtype(op) is not np.float32:
        raise op.refuse("it casts an activation to int64")
    return op.activation(0)


def _reduce(function: Callable[..., Any]) -> Handler:
    def handler(op: Operator, net: Network) -> Value:
        x = op.activation(0)
        axes = op.axes(1, x.rank)
        if axes is None and op.whole("noop_with_empty_axes", 0):
            return x
        keep = bool(op.whole("keepdims", 1))
        if axes is None or 0 in axes:
            raise op.refuse("it reduces the batch axis")
        if op.kind == "ReduceMean" and x.rank == 4 and axes == (2, 3):
            pooled = net.layer(op, nn.AdaptiveAvgPool2d(1), x)
            return pooled if keep else net.call(torch.flatten, pooled, 1)
        return net.call(function, x, axes, keep)

    return handler


def _concat(op: Operator, net: Network) -> Value:
    rank = _rank(op)
    parts = [
        net.operand(op, value) if isinstance(value, Constant) else op.activation(index)
        for index, value in enumerate(op.inputs)
    ]
    return net.call(torch.cat, parts, op.axis(op.whole("axis", 0), rank))


def _split(op: Operator, net: Network) -> Sequence[Value]:
    x = op.activation(0)
    axis = op.axis(op.whole("axis", 0), x.rank)
    size, count = x.shapes[0][axis], len(op.outputs)
    if axis == 0:
        raise op.refuse("it splits the batch axis")
    if "split" in op.attributes:
        sizes = list(op.ints("split", ()))
    elif op.has(1):
        sizes = [int(part) for part in op.fixed(1).reshape(-1)]
    else:
        most = -(-size // count)
        sizes = [most] * (count - 1) + [size - most * (count - 1)]
    if sum(sizes) != size or min(sizes) < 0 or len(sizes) != count:
        raise op.refuse(f"{size} values cannot be split into {sizes}")
    if len(set(sizes)) == 1:
        return net.pieces(torch.chunk, x, count, axis)
    return net.pieces(torch.split, x, sizes, axis)


def _pad(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    given = op.ints("pads", ()) if "pads" in op.attributes else tuple(op.fixed(1).tolist())
    axes = [op.axis(int(a), x.rank) for a in op.fixed(3)] if op.has(3) else list(range(x.rank))
    if len(given) != 2 * len(axes):
        raise op.refuse(f"it has {len(given)} pads for {len(axes)} axes")
    before, after = [0] * x.rank, [0] * x.rank
    for axis, low, high in zip(axes, given, given[len(axes) :], strict=False):
        before[axis], after[axis] = int(low), int(high)
    if before[0] or after[0]:
        raise op.refuse("it pads the batch axis")
    pads = [side for axis in reversed(range(x.rank)) for side in (before[axis], after[axis])]
    value = float(op.weight(2).reshape(())) if op.has(2) else op.number("value", 0.0)
    mode = op.text("mode", "constant")
    on_grid = x.rank == 4 and not any(pads[4:])
    grid = (pads[0], pads[1], pads[2], pads[3]) if on_grid else (0, 0, 0, 0)
    if mode == "constant" and on_grid:
        return net.layer(op, nn.ConstantPad2d(grid, value) if value else nn.ZeroPad2d(grid), x)
    if mode == "constant":
        while not any(pads[-2:]) and len(pads) > 2:
            del pads[-2:]
        return net.call(functional.pad, x, pads, value=value)
    if mode not in ("reflect", "edge") or not on_grid:
        raise op.refuse(f"mode {mode!r} with pads {list(given)} is not read")
    kind = nn.ReflectionPad2d if mode == "reflect" else nn.ReplicationPad2d
    return net.layer(op, kind(grid), x)


def _resize(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    if op.opset < 11 or x.rank != 4 or "axes" in op.attributes:
        raise op.refuse("four axes, none of them named, and opset 11 or later are read")
    old = x.shapes[0][2:]
    size = _resized(op, x)
    mode, where = (
        op.text("mode", "nearest"),
        op.text("coordinate_transformation_mode", "half_pixel"),
    )
    if op.whole("antialias", 0) or op.whole("exclude_outside", 0):
        raise op.refuse("antialias and exclude_outside are not read")
    if mode == "nearest":
        rounding = op.text("nearest_mode", "round_prefer_floor")
        whole = all(new % before == 0 for new, before in zip(size, old, strict=True))
        plain = where == "asymmetric" and (rounding == "floor")
        # Enlarged by whole numbers, pixels are repeated, whichever way of the two it is said.
        if not plain and not (whole and where == "half_pixel" and rounding.startswith("round")):
            raise op.refuse(f"nearest with {where!r} and {rounding!r} is not read")
        return net.call(functional.interpolate, x, size=size, mode="nearest")
    names = {"linear": "bilinear", "cubic": "bicubic"}
    half = where == "half_pixel" or (where == "pytorch_half_pixel" and min(size) > 1)
    if mode not in names or not (half or where == "align_corners"):
        raise op.refuse(f"mode {mode!r} with {where!r} is not read")
    if mode == "cubic" and op.number("cubic_coeff_a", -0.75) != -0.75:
        raise op.refuse("cubic_coeff_a other than -0.75 is not read")
    return net.call(functional.interpolate, x, size=size, mode=names[mode], align_corners=not half)


def _resized(op: Operator, x: Activation) -> list[int]:
    """Return the new H and W."""
    old = x.shapes[0]
    if op.has(3):
        sizes = op.constant(3).arrays
        if any(tuple(a[:2]) != s[:2] for a, s in zip(sizes, x.shapes, strict=True)):
            raise op.refuse("it resizes the batch or the channels")
        return [int(side) for side in sizes[0][2:]]
    scales = op.weight(2).reshape(-1)
    if scales.size != 4 or tuple(scales[:2]) != (1.0, 1.0):
        raise op.refuse(f"scales {scales[:8].tolist()} are not (1, 1, H, W)")
    exact = [side * float(scale) for side, scale in zip(old[2:], scales[2:], strict=True)]
    size = [int(np.floor(side + 1e-4)) for side in exact]
    if any(abs(side - whole) > 1e-3 for side, whole in zip(exact, size, strict=True)):
        raise op.refuse(f"scales {scales.tolist()} of {list(old[2:])} give no whole size")
    return size


def _depth_to_space(op: Operator, net: Network) -> Value:
    if op.text("mode", "DCR") != "CRD":
        raise op.refuse("mode DCR is not read")
    return net.layer(op, nn.PixelShuffle(op.whole("blocksize", 1)), op.activation(0))


def shape_of(op: Operator) -> Constant:
    """Return what a Shape gives."""
    first, second = (
        _part(op, np.array(shape, dtype=np.int64)) for shape in op.activation(0).shapes
    )
    same = np.array_equal(first, second)
    return Constant((first, first if same else second), op.outputs[0])


def _part(op: Operator, shape: Array) -> Array:
    return shape[op.whole("start", 0) : op.attributes.get("end")]


FUNCTIONS: Mapping[str, Handler] = {
    "Add": _add,
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(operator.truediv),
    "Pow": _binary(operator.pow),
    "Max": _extreme,
    "Min": _extreme,
    "MatMul": _matmul,
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Erf": _unary(torch.erf),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Reciprocal": _unary(torch.reciprocal),
    "Identity": _same,
    "Cast": _cast,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "Shape": lambda op, net: shape_of(op),
}
"""By operator: what makes its calls."""
