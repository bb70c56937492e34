"""Small ONNX files, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compression.export import parity
from compression.models.onnx_import import import_onnx
from tests.builders import SHAPE

TOLERANCE = 1e-5
CHANNELS, SIDE = SHAPE[0], SHAPE[1]
FLAT = CHANNELS * SIDE * SIDE


def noise(rows: int, shape: Sequence[int] = SHAPE) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))


def check_parity(data: bytes, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """Import, and compare with ONNX Runtime at two batch sizes."""
    model = import_onnx(data, shape)
    for rows in (1, 3):
        assert parity(data, model, noise(rows, shape)) <= TOLERANCE
    return model


def with_constant_nodes(data: bytes) -> bytes:
    """Return the same network, its initializers moved into `Constant` nodes."""
    model = onnx.load_model_from_string(data)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def network(
    nodes: Sequence[NodeProto],
    weights: Sequence[tuple[str, Any]] = (),
    *,
    opset: int = 18,
    shape: Sequence[Any] = ("n", *SHAPE),
    kind: int = TensorProto.FLOAT,
    output: str = "y",
) -> bytes:
    """Return a file of these nodes, from `x` to `y`."""
    tensors = [
        w if isinstance(w, TensorProto) else numpy_helper.from_array(np.asarray(w), name)
        for name, w in weights
    ]
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    # The checker wants a shape of every output.
    shaped = onnx.shape_inference.infer_shapes(made).graph.output[0].type.tensor_type
    kept = made.graph.output[0].type.tensor_type.shape
    kept.CopyFrom(shaped.shape)
    if not shaped.HasField("shape"):
        for axis in range(4):
            kept.dim.add().dim_param = f"free{axis}"
    return bytes(made.SerializeToString())


def random(*shape: int) -> Any:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape, dtype=np.float32)


def i64(values: Any) -> Any:
    return np.array(values, dtype=np.int64)


def f32(values: Any) -> Any:
    return np.array(values, dtype=np.float32)


def node(kind: str, inputs: str = "x", output: str = "y", **attributes: Any) -> NodeProto:
    names = [name if name != "-" else "" for name in inputs.split()]
    name = f"n_{kind}" if output == "y" else f"n_{kind}_{output.split()[0]}"
    return helper.make_node(kind, names, output.split(), name=name, **attributes)
