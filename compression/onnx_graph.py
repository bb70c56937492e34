"""Names and lossless rewriting of ONNX graphs.

An exported graph keeps the names of the network it came from: the node of a convolution or linear
layer is named like the layer (`layer1.0.conv1`; a second use of the layer is `layer1.0.conv1@2`),
every other node is named after the scope it ran in and its operator (`layer1.0/Add`), values are
named after the node that makes them, and weights are `<node>.weight` and `<node>.bias`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto

from compression.errors import CompressionError
from compression.onnx_session import RUNTIME_ERRORS

LAYER_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that carry the weights of a layer."""

# Operators a weight may pass through between its initializer and the node that uses it.
_WEIGHT_PATH_OPS = frozenset({"Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze"})

# Passes of ONNX Runtime that multiply into weights; they would tear shared values apart.
_WEIGHT_SCALING = ["ConvBNFusion", "ConvMulFusion", "MatMul_BatchNormalization_Fusion"]


def layer_of(node_name: str) -> str:
    """Return the layer or scope of a node: `conv1@2` -> `conv1`, `layer1.0/Add` -> `layer1.0`."""
    return node_name.split("@", 1)[0].rsplit("/", 1)[0]


def read_graph(data: bytes) -> ModelProto:
    """Parse a model that carries its own weights.

    Raises:
        CompressionError: The bytes are not an ONNX model, or weights are kept outside.
    """
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise CompressionError(f"Not an ONNX model ({len(data)} bytes): {error}") from error
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CompressionError(f"ONNX tensor {tensor.name!r} lies outside the file")
    return model


def write_graph(model: ModelProto) -> bytes:
    """Return the bytes of a model; the same model always gives the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def name_nodes(model: ModelProto, layers: Mapping[str, str]) -> None:
    """Name every node by its layer or scope.

    Args:
        model: Changed in place; node names still are the exporter's scopes.
        layers: Layer name of every parameter name, e.g. `conv1.weight` -> `conv1`.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    taken: dict[str, int] = {}
    for node in model.graph.node:
        layer = _layer_by_weight(node, layers, producers) if node.op_type in LAYER_OPS else None
        name = layer if layer else f"{_scope(node.name)}/{node.op_type}"
        node.name = _unique(name, taken)


def tidy(model: ModelProto) -> None:
    """Drop what the runtime does not need and name values and weights after their nodes.

    Graph inputs and outputs keep their names.
    """
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    del graph.value_info[:]
    del model.metadata_props[:], graph.metadata_props[:]
    used = {node.domain for node in graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used or not opset.domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    taken = {node.name: 1 for node in graph.node if node.name}
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        node.name = node.name or _unique(f"{_source_scope(node)}/{node.op_type}", taken)
    _rename_values(model)


def fold(data: bytes, *, keep_norms: bool = False) -> ModelProto:
    """Fold constants and BatchNorm into the weights by ONNX Runtime's lossless basic passes.

    Only operators of the ONNX standard come out, so that any runtime loads the result.

    Args:
        data: A serialized model.
        keep_norms: Leave BatchNorm, and factors behind a convolution, out of its weights.

    Raises:
        CompressionError: ONNX Runtime refuses the graph, or leaves an operator of its own.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="fold-") as folder:
        # The runtime hands its rewritten graph out through a file only.
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_WEIGHT_SCALING if keep_norms else [],
            )
        except RUNTIME_ERRORS as error:
            raise CompressionError(f"ONNX Runtime refuses the exported graph: {error}") from error
        model = onnx.load(path)
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain})
    if foreign:
        raise CompressionError(f"Folding left operators outside the ONNX standard: {foreign}")
    return model


def unfolded_norms(model: ModelProto) -> list[str]:
    """Return the BatchNorm nodes that directly follow a convolution and could have been folded."""
    producers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for value in node.input:
            readers[value] = readers.get(value, 0) + 1
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        and (source := producers.get(node.input[0])) is not None
        and source.op_type == "Conv"
        and readers[node.input[0]] == 1
    ]


def _layer_by_weight(
    node: NodeProto, layers: Mapping[str, str], producers: Mapping[str, NodeProto]
) -> str | None:
    for value in node.input:
        while value not in layers:
            source = producers.get(value)
            if source is None or source.op_type not in _WEIGHT_PATH_OPS:
                break
            value = source.input[0]
        if value in layers:
            return layers[value]
    return None


def _scope(exporter_name: str) -> str:
    """`/layer1/layer1.0/conv1/Conv` -> `layer1.0.conv1`: the exporter repeats a list's own name."""
    path: list[str] = []
    for segment in exporter_name.split("/")[1:-1]:
        if path and segment.startswith(f"{path[-1]}."):
            path[-1] = segment
        else:
            path.append(segment)
    return ".".join(path) or "model"


def _source_scope(node: NodeProto) -> str:
    """A node that a pass created carries no name; its output still carries the exporter's."""
    return _scope(node.output[0])


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}@{taken[name]}"


def _rename_values(model: ModelProto) -> None:
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    weights = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {name: name for name in fixed}
    taken = dict.fromkeys(fixed, 1)
    for node in graph.node:
        roles = _roles(node)
        for index, value in enumerate(node.input):
            if value in weights and value not in names:
                role = roles.get(index, str(index))
                names[value] = _unique(f"{layer_of(node.name)}.{role}", taken)
        for index, value in enumerate(node.output):
            if value and value not in names:
                names[value] = _unique(node.name + (f".{index}" if index else ""), taken)
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    # The folding passes leave initializers in hash order; sorted, equal graphs are equal bytes.
    ordered = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def _roles(node: NodeProto) -> Mapping[int, str]:
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "LayerNormalization"):
        return {1: "weight", 2: "bias"}
    if node.op_type == "MatMul":
        return {0: "weight", 1: "weight"}
    if node.op_type == "BatchNormalization":
        return {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}
    return {}
