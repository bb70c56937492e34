"""Operators on constants, folded while an ONNX graph is read.

Files compute shapes by operators (`Shape`, `Gather`, `Concat`, ...). Here they are carried out,
within a budget: a few bytes of a file must not become gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compression.errors import ModelRefused
from compression.models.onnx_values import Array, Constant, Operator

SPARE_VALUES = 1 << 18
DTYPES: Mapping[int, Any] = {1: np.float32, 7: np.int64}
"""The kinds of numbers that are read, by `TensorProto.DataType`."""


class Budget:
    """How many values folding may still make."""

    def __init__(self, file_bytes: int) -> None:
        self._left = file_bytes + SPARE_VALUES

    def spend(self, op: Operator, values: int) -> None:
        """Take values from the budget before they are made.

        Raises:
            ModelRefused: There are not so many left.
        """
        self._left -= values
        if values < 0 or self._left < 0:
            raise op.refuse(
                f"it makes a constant of {values} values, out of proportion to the file"
            )


def fold(op: Operator, budget: Budget) -> Constant:
    """Carry out an operator whose inputs are all constants.

    Raises:
        ModelRefused: The operator is not known here, or its result is too large.
    """
    function = FOLDED.get(op.kind)
    if function is None:
        raise op.refuse("no such operator is known on constants")
    sides = []
    values = [value for value in op.inputs if isinstance(value, Constant)]
    fixed = all(value.is_fixed for value in values)
    for side in (0,) if fixed else (0, 1):
        arrays = [v.arrays[side] if isinstance(v, Constant) else None for v in op.inputs]
        try:
            result = np.asarray(function(op, arrays, budget))
        except (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError) as error:
            if isinstance(error, ModelRefused):
                raise
            raise op.refuse(str(error).split("\n", 1)[0]) from error
        sides.append(result)
    name = values[0].name if values and op.kind in _KEEP_NAME else op.outputs[0]
    if fixed or (sides[0].shape == sides[1].shape and np.array_equal(sides[0], sides[1])):
        return Constant((sides[0], sides[0]), name)
    return Constant((sides[0], sides[1]), name)


Arrays = Sequence[Any]
_Function = Callable[[Operator, Arrays, Budget], Any]
_KEEP_NAME = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})


def cast_dtype(op: Operator) -> Any:
    """Return what a Cast casts to.

    Raises:
        ModelRefused: It is neither float32 nor int64.
    """
    dtype = DTYPES.get(op.whole("to", 0))
    if dtype is None:
        raise op.refuse(f"it casts to data type {op.whole('to', 0)}; float32 and int64 are read")
    return dtype


def _pointwise(function: Callable[..., Any]) -> _Function:
    def run(op: Operator, arrays: Arrays, budget: Budget) -> Any:
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
        budget.spend(op, math.prod(shape))
        return np.asarray(function(*arrays)).astype(_kind(op, arrays), copy=False)

    return run


def _kind(op: Operator, arrays: Arrays) -> Any:
    return np.bool_ if op.kind in ("Equal", "Less", "Greater") else arrays[-1].dtype


def _divide(left: Array, right: Array) -> Any:
    # Integers are divided towards zero.
    return left / right if left.dtype.kind == "f" else np.trunc(left / right)


def _constant_of_shape(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    shape = _shape(arrays[0])
    budget.spend(op, math.prod(shape))
    value = op.attributes.get("value")
    return np.full(shape, np.float32(0) if value is None else np.asarray(value).reshape(-1)[0])


def _shape(array: Array) -> tuple[int, ...]:
    shape = tuple(int(size) for size in array.reshape(-1))
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {list(shape)} has negative sizes")
    return shape


def _gather(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    data, indices = arrays
    axis = op.axis(op.whole("axis", 0), max(data.ndim, 1))
    budget.spend(op, indices.size * (data.size // max(1, data.shape[axis])))
    return np.take(data, indices, axis=axis)


def _concat(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    budget.spend(op, sum(a.size for a in arrays))
    return np.concatenate(arrays, axis=op.whole("axis", 0))


def _slice(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    data = arrays[0]
    where = [slice(None)] * data.ndim
    for axis, start, stop, step in slice_rows(op, arrays[1:], data.ndim):
        # An end far below zero means the first element, where the step goes backwards.
        end = None if step < 0 and stop < -data.shape[axis] else stop
        where[axis] = slice(start, end, step)
    return data[tuple(where)]


def slice_rows(op: Operator, arrays: Arrays, rank: int) -> list[tuple[int, int, int, int]]:
    """Return axis, start, stop and step of every sliced axis.

    Args:
        op: A Slice.
        arrays: starts, ends, axes, steps as far as they are inputs.
        rank: Of what is sliced.
    """
    if "starts" in op.attributes:
        starts, ends = op.ints("starts", ()), op.ints("ends", ())
        axes, steps = op.ints("axes", ()) or range(len(starts)), None
    else:
        starts, ends = arrays[0].tolist(), arrays[1].tolist()
        given = arrays[2] if len(arrays) > 2 else None
        axes = range(len(starts)) if given is None else given.tolist()
        steps = arrays[3].tolist() if len(arrays) > 3 and arrays[3] is not None else None
    steps = [1] * len(starts) if steps is None else steps
    rows = zip(axes, starts, ends, steps, strict=True)
    return [(op.axis(int(axis), rank), int(a), int(b), int(c)) for axis, a, b, c in rows]


def _squeeze(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    data = arrays[0]
    axes = op.axes(1, data.ndim)
    return np.squeeze(data, axis=axes)


def _unsqueeze(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    data = arrays[0]
    count = len(op.attributes["axes"]) if "axes" in op.attributes else arrays[1].size
    return np.expand_dims(data, op.axes(1, data.ndim + count) or ())


def target_shape(op: Operator, shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that a Reshape makes: 0 copies a size, -1 is what is left."""
    goal = [int(size) for size in target]
    if not op.whole("allowzero", 0):
        goal = [shape[axis] if size == 0 else size for axis, size in enumerate(goal)]
    known = math.prod(size for size in goal if size != -1)
    total = math.prod(shape)
    if goal.count(-1) == 1 and known:
        goal[goal.index(-1)] = total // known
    if min(goal, default=0) < 0 or math.prod(goal) != total:
        raise op.refuse(f"shape {list(shape)} cannot become {[int(size) for size in target]}")
    return tuple(goal)


def _reshape(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    return arrays[0].reshape(target_shape(op, arrays[0].shape, arrays[1].reshape(-1)))


def _expand(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    shape = np.broadcast_shapes(arrays[0].shape, _shape(arrays[1]))
    budget.spend(op, math.prod(shape))
    return np.broadcast_to(arrays[0], shape)


def _transpose(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    order = op.ints("perm", ()) or tuple(reversed(range(arrays[0].ndim)))
    return np.transpose(arrays[0], order)


def _range(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    start, limit, step = (a.reshape(()).item() for a in arrays)
    budget.spend(op, max(0, math.ceil((limit - start) / step)))
    return np.arange(start, limit, step, dtype=arrays[0].dtype)


def _where(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    budget.spend(op, math.prod(np.broadcast_shapes(*(a.shape for a in arrays))))
    return np.where(*arrays)


def _reduce_prod(op: Operator, arrays: Arrays, budget: Budget) -> Any:
    axes = op.axes(1, arrays[0].ndim)
    return np.prod(arrays[0], axis=axes, keepdims=bool(op.whole("keepdims", 1)))


FOLDED: Mapping[str, _Function] = {
    "Identity": lambda op, arrays, budget: arrays[0],
    "Cast": lambda op, arrays, budget: arrays[0].astype(cast_dtype(op)),
    "Add": _pointwise(np.add),
    "Sub": _pointwise(np.subtract),
    "Mul": _pointwise(np.multiply),
    "Div": _pointwise(_divide),
    "Mod": _pointwise(np.mod),
    "Pow": _pointwise(np.power),
    "Min": _pointwise(np.minimum),
    "Max": _pointwise(np.maximum),
    "Equal": _pointwise(np.equal),
    "Less": _pointwise(np.less),
    "Greater": _pointwise(np.greater),
    "Sqrt": _pointwise(np.sqrt),
    "Floor": _pointwise(np.floor),
    "Ceil": _pointwise(np.ceil),
    "Neg": _pointwise(np.negative),
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "Transpose": _transpose,
    "Range": _range,
    "ReduceProd": _reduce_prod,
}
