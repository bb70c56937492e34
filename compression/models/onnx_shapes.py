"""ONNX operators that move values about: Reshape, Slice, Gather, Transpose and the like.

A file says shapes as numbers. Where the meaning is plain, it is written so that it survives
other widths: one axis split in two, axes merged, a slice that is one of several equal parts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from compression.models.onnx_constants import slice_rows, target_shape
from compression.models.onnx_layers import Handler
from compression.models.onnx_network import Network
from compression.models.onnx_values import BATCHES, Activation, Constant, Operator, Value

Shape = tuple[int, ...]


def _reshape(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    if op.given(1) is None and "shape" in op.attributes:
        targets = [list(op.ints("shape", ()))] * 2
    else:
        targets = [[int(size) for size in a.reshape(-1)] for a in op.constant(1).arrays]
    for target, shape, batch in zip(targets, x.shapes, BATCHES, strict=True):
        # A file of one fixed batch size says it in its reshapes.
        if op.batch and target[:1] == [op.batch] and shape[:1] == (batch,):
            target[0] = batch
    first, second = (target_shape(op, s, t) for s, t in zip(x.shapes, targets, strict=True))
    free = targets[0].index(-1) if -1 in targets[0] else None
    return reshaped(op, net, x, (first, second), free)


def reshaped(
    op: Operator, net: Network, x: Activation, goals: tuple[Shape, Shape], free: int | None
) -> Activation:
    """Append what brings `x` into another shape.

    Args:
        op: For errors.
        net: Gets the call.
        x: The tensor.
        goals: The shape at each batch size.
        free: Axis of the goal that takes what is left; None to choose.
    """
    old = list(zip(*x.shapes, strict=True))
    new = list(zip(*goals, strict=True))
    if old == new:
        return x
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    inner, outer = old[head : len(old) - tail], new[head : len(new) - tail]
    if len(inner) > 1 and len(outer) == 1:
        return net.call(torch.flatten, x, head, head + len(inner) - 1)
    if len(inner) == 1 and len(outer) > 1:
        return net.method("unflatten", x, head, _sizes(op, outer, free, head))
    ones = [(1, 1)]
    if not inner and outer == ones * len(outer):
        for _ in outer:
            x = net.call(torch.unsqueeze, x, head)
        return x
    if not outer and inner == ones * len(inner) and head > 1:
        return net.call(torch.flatten, x, head - 1, head - 1 + len(inner))
    if head:
        rest = [size for size, _ in new[1:]]
        if free:
            rest[free - 1] = -1
        return net.method("reshape", x, net.batch_size(), *rest)
    return net.method("reshape", x, *_sizes(op, new, free, 0))


def _sizes(
    op: Operator, pairs: Sequence[tuple[int, int]], free: int | None, offset: int
) -> tuple[int, ...]:
    """Return sizes of which one, -1, is what is left: the batch, the file's own, or the largest."""
    moving = [index for index, (first, second) in enumerate(pairs) if first != second]
    if len(moving) > 1:
        raise op.refuse("the batch size enters several axes of the new shape")
    sizes = [first for first, _ in pairs]
    if moving:
        chosen = moving[0]
    elif free is not None and 0 <= free - offset < len(sizes):
        chosen = free - offset
    else:
        chosen = max(range(len(sizes)), key=lambda index: sizes[index])
    if math.prod(sizes):
        sizes[chosen] = -1
    return tuple(sizes)


def _flatten(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    axis = op.whole("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    if not 0 <= axis <= x.rank:
        raise op.refuse(f"axis {axis} of a tensor of {x.rank} axes")
    if axis == 1 and x.rank > 1:
        return net.call(torch.flatten, x, 1) if x.rank > 2 else x
    first, second = ((math.prod(s[:axis]), math.prod(s[axis:])) for s in x.shapes)
    return reshaped(op, net, x, (first, second), None)


def _squeeze(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    axes = op.axes(1, x.rank)
    if axes is None:
        axes = tuple(axis for axis, size in enumerate(x.shapes[0]) if size == 1)
    if any(x.shapes[0][axis] != 1 for axis in axes):
        raise op.refuse(f"axes {list(axes)} of shape {list(x.shapes[0])} are not all 1")
    if len(axes) > 1 and axes == tuple(range(2, x.rank)):
        return net.call(torch.flatten, x, 1)
    for axis in reversed(axes):
        x = net.call(torch.squeeze, x, axis)
    return x


def _unsqueeze(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    count = len(op.attributes["axes"]) if "axes" in op.attributes else op.fixed(1).size
    for axis in op.axes(1, x.rank + count) or ():
        x = net.call(torch.unsqueeze, x, axis)
    return x


def _transpose(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    order = op.ints("perm", ()) or tuple(reversed(range(x.rank)))
    if sorted(order) != list(range(x.rank)):
        raise op.refuse(f"perm is {list(order)} for {x.rank} axes")
    return net.call(torch.permute, x, order)


def _slice(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    given = [op.constant(i) if op.has(i) else None for i in range(1, len(op.inputs))]
    rows = [
        slice_rows(op, [None if c is None else c.arrays[side] for c in given], x.rank)
        for side in (0, 1)
    ]
    where = [slice(None)] * x.rank
    for one, two in zip(*rows, strict=True):
        axis = one[0]
        sizes = x.shapes[0][axis], x.shapes[1][axis]
        if one[3] < 1:
            raise op.refuse(f"its step is {one[3]}; steps of at least 1 are read")
        spans = [
            slice(start, stop, step).indices(size)
            for (_, start, stop, step), size in zip((one, two), sizes, strict=True)
        ]
        if all(span == (0, size, 1) for span, size in zip(spans, sizes, strict=True)):
            continue
        if axis == 0 or spans[0] != spans[1] or where[axis] != slice(None):
            raise op.refuse("it slices the batch axis, or one axis twice")
        start, stop, step = spans[0]
        where[axis] = slice(
            start or None, None if stop == sizes[0] else stop, None if step == 1 else step
        )
    cut = [axis for axis, part in enumerate(where) if part != slice(None)]
    if not cut:
        return x
    if cut == [1]:
        part = _equal_part(where[1], x.shapes[0][1])
        if part is not None:
            return net.pieces(torch.chunk, x, part[1], 1)[part[0]]
    return net.call(operator.getitem, x, tuple(where[: cut[-1] + 1]))


def _equal_part(part: slice, size: int) -> tuple[int, int] | None:
    """Return which of how many equal parts of an axis a slice is; None if it is no such part."""
    start, stop, step = part.indices(size)
    width = stop - start
    if step != 1 or width < 1 or size % width or start % width or size // width > 8:
        return None
    return start // width, size // width


def _gather(op: Operator, net: Network) -> Value:
    x, indices = op.activation(0), op.fixed(1)
    axis = op.axis(op.whole("axis", 0), x.rank)
    size = x.shapes[0][axis]
    if size == BATCHES[0] or indices.ndim > 1 or indices.dtype.kind != "i":
        raise op.refuse("it picks along the batch axis, or with a table of indices")
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise op.refuse(f"its indices reach beyond {size} values")
    if indices.ndim == 0:
        where: tuple[Any, ...] = (*[slice(None)] * axis, int(indices))
        return net.call(operator.getitem, x, where)
    constant = op.constant(1)
    positive = indices % size
    return net.call(
        torch.index_select, x, axis, net.operand(op, Constant((positive, positive), constant.name))
    )


def _expand(op: Operator, net: Network) -> Value:
    value = op.given(0)
    x = net.operand(op, value) if isinstance(value, Constant) else op.activation(0)
    sizes: list[Any] = []
    targets = [tuple(int(size) for size in a.reshape(-1)) for a in op.constant(1).arrays]
    goals = [
        np.broadcast_shapes(shape, target) for shape, target in zip(x.shapes, targets, strict=True)
    ]
    offset = len(goals[0]) - x.rank
    for axis, pair in enumerate(zip(*goals, strict=True)):
        old = None if axis < offset else (x.shapes[0][axis - offset], x.shapes[1][axis - offset])
        if old == pair:
            sizes.append(-1)
        elif pair[0] == pair[1]:
            sizes.append(pair[0])
        elif pair == BATCHES:
            sizes.append(net.batch_size())
        else:
            raise op.refuse("its shape is no simple function of the batch size")
    return net.method("expand", x, *sizes)


SHAPES: Mapping[str, Handler] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
}
"""By operator: what makes its calls."""
