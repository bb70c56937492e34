"""Small ONNX files made from nothing but the ONNX library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from compression.decisions import Quantize
from compression.primitives.quantize import quantize_onnx


def conv_net(
    width: int = 4,
    depth: int = 2,
    *,
    classes: int = 3,
    size: int = 8,
    batch: int | None = None,
) -> bytes:
    """Return a network of 3x3 convolutions on `3 x size x size` inputs; any batch, or this one."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "input", 3
    for index in range(depth):
        shape = (width, channels, 3, 3)
        kernel = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(9 * channels))
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, channels = f"r{index}", width
    head = rng.standard_normal((width, classes), dtype=np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    rows = batch or "n"
    return _file(nodes, weights, [rows, 3, size, size], [rows, classes], TensorProto.FLOAT)


def integer_conv_net(width: int = 8) -> bytes:
    """Return the INT8 form of `conv_net`, calibrated on random inputs."""
    inputs = np.random.default_rng(0).standard_normal((8, 3, 8, 8), dtype=np.float32)
    return quantize_onnx(conv_net(width), inputs, Quantize())


def integer_net() -> bytes:
    """Return a network whose input is not float32."""
    nodes = [helper.make_node("Identity", ["input"], ["logits"])]
    return _file(nodes, [], ["n", 3], ["n", 3], TensorProto.INT64)


def _file(
    nodes: Sequence[NodeProto],
    weights: Sequence[TensorProto],
    inputs: Sequence[str | int | None],
    outputs: Sequence[str | int | None],
    kind: int,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", kind, inputs)],
        [helper.make_tensor_value_info("logits", kind, outputs)],
        weights,
    )
    opset = [helper.make_opsetid("", 18)]
    data: bytes = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return data
