"""Running an ONNX graph one node at a time, so that a caller may step in after every node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from compression.errors import CompressionError
from compression.onnx_session import open_session

Array = NDArray[Any]


class NodeWalk:
    """The values of a graph on some inputs, node after node.

    Iterating yields every node right after its outputs were computed. Between two nodes the
    caller may change `weights` and `values`; what follows sees the change. A value is forgotten
    after the last node that reads it.

    Attributes:
        weights: Initializers by name.
        values: What was computed and is still needed, by name.
    """

    def __init__(self, model: ModelProto, inputs: NDArray[np.float32]) -> None:
        self.weights: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        (given,) = (v.name for v in model.graph.input if v.name not in self.weights)
        self.values: dict[str, Array] = {given: np.ascontiguousarray(inputs)}
        self._model = model
        self._nodes = _in_order(model, {given, *self.weights})

    def __iter__(self) -> Iterator[NodeProto]:
        last = {value: index for index, node in enumerate(self._nodes) for value in node.input}
        for index, node in enumerate(self._nodes):
            self.compute(node)
            yield node
            for value in (*node.input, *node.output):
                if last.get(value, -1) <= index:
                    self.values.pop(value, None)

    def compute(self, node: NodeProto) -> None:
        """Compute the outputs of a node whose inputs are at hand."""
        feeds = {name: self._read(name) for name in node.input if name}
        graph = helper.make_graph(
            [node],
            "node",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), None
                )
                for name, array in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        model = helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
        )
        outputs = [name for name in node.output if name]
        session = open_session(model.SerializeToString(), optimize=False)
        self.values.update(zip(outputs, session.run(outputs, feeds), strict=True))

    def _read(self, name: str) -> Array:
        return self.values[name] if name in self.values else self.weights[name]


def _in_order(model: ModelProto, known: set[str]) -> list[NodeProto]:
    """Return the nodes, each after those it reads from; ties stay in the graph's order."""
    ordered: list[NodeProto] = []
    waiting = list(model.graph.node)
    known = {"", *known}
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise CompressionError(f"Nothing makes the inputs of node {waiting[0].name!r}")
        ordered += ready
        known.update(value for node in ready for value in node.output)
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    return ordered
