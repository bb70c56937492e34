"""What an ONNX graph computes while it is read: constants, activations, operators.

Shapes are evaluated for two batch sizes side by side, without any data. Whatever differs between
the two depends on the batch size; everything else is a constant and is folded. The batch sizes
are primes that no layer has as a width, so that they are not mistaken for one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from compression.errors import ModelRefused

BATCHES = (1009, 1013)
"""The batch sizes for which shapes are evaluated."""

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that does not depend on the input's values.

    Attributes:
        arrays: Its value at each of `BATCHES`; the same object where they do not differ.
        name: The initializer or node it comes from.
    """

    arrays: tuple[Array, Array]
    name: str

    @property
    def is_fixed(self) -> bool:
        """Whether it does not depend on the batch size either."""
        return self.arrays[0] is self.arrays[1]


@dataclasses.dataclass(frozen=True, slots=True)
class Activation:
    """A tensor that is computed from the input, or a batch size.

    Attributes:
        node: What computes it in the imported network.
        results: Tensors without data (device `meta`) at each of `BATCHES`.
    """

    node: fx.Node
    results: tuple[Any, Any]

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Its shape at each of `BATCHES`."""
        first, second = self.results
        return tuple(first.shape), tuple(second.shape)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shapes[0])


Value = Constant | Activation


@dataclasses.dataclass(frozen=True, slots=True)
class Operator:
    """A node of the graph, with the values it reads.

    Attributes:
        name: As in the file, or the name of its first output.
        kind: `Conv`, `Relu`, ...
        opset: Version of the operator set that the file imports.
        attributes: Numbers, strings (as bytes), lists and tensors.
        inputs: None where an optional input is absent.
        outputs: Names of its outputs.
        batch: Batch size that the file declares; None where it is free.
    """

    name: str
    kind: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Value | None]
    outputs: Sequence[str]
    batch: int | None = None

    def refuse(self, reason: str) -> ModelRefused:
        """Return the error that names this node, its operator and opset."""
        return ModelRefused(
            f"ONNX node {self.name!r} ({self.kind}, opset {self.opset}) is not supported: {reason}"
        )

    def given(self, index: int) -> Value | None:
        """Return an input; None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def activation(self, index: int) -> Activation:
        """Return an input that must be computed from the network's input."""
        value = self.given(index)
        if not isinstance(value, Activation):
            what = "missing" if value is None else "a constant"
            raise self.refuse(f"its input {index} is {what}, not computed from the network's input")
        return value

    def constant(self, index: int) -> Constant:
        """Return an input that must be a constant."""
        value = self.given(index)
        if not isinstance(value, Constant):
            what = "missing" if value is None else "computed from the network's input"
            raise self.refuse(f"its input {index} is {what}, not a constant")
        return value

    def weight(self, index: int) -> Array:
        """Return the float32 values of a constant input that every batch size shares."""
        array = self.fixed(index)
        if array.dtype != np.float32:
            raise self.refuse(f"its input {index} is {array.dtype}, not float32")
        return array

    def fixed(self, index: int) -> Array:
        """Return a constant input that does not depend on the batch size."""
        constant = self.constant(index)
        if not constant.is_fixed:
            raise self.refuse(f"its input {index} depends on the batch size")
        return constant.arrays[0]

    def has(self, index: int) -> bool:
        """Return whether an optional input is there (an empty one counts as absent)."""
        value = self.given(index)
        return value is not None and not (isinstance(value, Constant) and value.arrays[0].size == 0)

    def ints(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """Return an attribute that is a list of integers, as long as its default."""
        values = tuple(int(value) for value in self.attributes.get(name, default))
        if default and len(values) != len(default):
            raise self.refuse(f"{name} is {list(values)}; {len(default)} values are expected")
        return values

    def number(self, name: str, default: float) -> float:
        """Return an attribute that is a number."""
        return float(self.attributes.get(name, default))

    def whole(self, name: str, default: int) -> int:
        """Return an attribute that is an integer."""
        return int(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is a string."""
        value = self.attributes.get(name, default.encode())
        return bytes(value).decode("utf-8", "replace")

    def axes(self, index: int, rank: int) -> tuple[int, ...] | None:
        """Return `axes`, an attribute in old opsets and input `index` in new ones, none negative.

        Returns:
            Sorted axes; None where they are absent.
        """
        if "axes" in self.attributes:
            given = [int(axis) for axis in self.attributes["axes"]]
        elif self.has(index):
            given = [int(axis) for axis in self.fixed(index).reshape(-1)]
        else:
            return None
        return tuple(sorted(self.axis(axis, rank) for axis in given))

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front."""
        if not -rank <= axis < rank:
            raise self.refuse(f"axis {axis} of a tensor of {rank} axes")
        return axis % rank
