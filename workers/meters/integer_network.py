"""An INT8 graph as a PyTorch network whose roundings are operators that exporters know.

The QDQ form of `compression.primitives.quantize` is read into `torch.ops.quantized_decomposed`:
the same integers and scales, so that every runtime computes one network. Activations are shifted
from uint8 to int8, which changes no value: the zero point moves by 128 with them.

Layers whose output is not rounded (the last one) get their weights back as floats on the same
grid: with no scale for its output there is no integer form of it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from torch import fx, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # defines quantized_decomposed
from torch.nn import functional

from compression.models.onnx_import import HANDLERS, import_onnx
from compression.models.onnx_network import Network
from compression.models.onnx_values import Operator, Value
from compression.onnx_graph import read_graph, write_graph

LOW, HIGH = -128, 127
UNSIGNED_SHIFT = 128

Integers = tuple[NDArray[np.int8], NDArray[np.float32], int]
"""Weights as integers, one scale per output channel, and the axis of these."""

_CLAMPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_CLAMP_CALLS = (torch.relu, functional.relu, torch.clamp, functional.hardtanh)


def import_integers(file: bytes) -> fx.GraphModule:
    """Return the network of an INT8 file of ours, in eval mode.

    Raises:
        ModelRefused: The file has an operator that is not read.
        ValueError: A value is quantized in a way that ours are not.
    """
    model, weights = _without_pairs(read_graph(file))
    handlers = {**HANDLERS, "QuantizeLinear": _round}
    network = import_onnx(write_graph(model), handlers=handlers)
    _use_integers(network, weights)
    return network


def _round(op: Operator, net: Network) -> Value:
    """Append a rounding to the grid and back."""
    ops = torch.ops.quantized_decomposed
    scale, zero = float(op.fixed(1).reshape(())), int(op.fixed(2).reshape(()))
    grid = (scale, zero, LOW, HIGH, torch.int8)
    integers = net.call(ops.quantize_per_tensor.default, op.activation(0), *grid)
    return net.call(ops.dequantize_per_tensor.default, integers, *grid)


def _without_pairs(model: ModelProto) -> tuple[ModelProto, Mapping[bytes, Integers]]:
    """Return the graph with float weights, and one node for each pair of conversions.

    Returns:
        The graph, sorted, its zero points shifted and in int64, which the importer reads; and the
        integers of every weight, by the bytes of its float values.
    """
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    floats: dict[str, NDArray[Any]] = {}
    weights: dict[bytes, Integers] = {}
    nodes: list[NodeProto] = []
    rounded: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            nodes.append(node)
            continue
        source, output = node.input[0], node.output[0]
        scale, zero = values[node.input[1]], values[node.input[2]]
        if source in values:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            floats[output] = _dequantized(values[source], scale, zero, axis)
            if values[source].dtype == np.int8 and scale.ndim == 1:
                if zero.any():
                    raise ValueError(f"Weight {source!r} has zero points other than 0")
                weights[floats[output].tobytes()] = (values[source], scale, axis)
            continue
        if zero.dtype != np.uint8 or scale.ndim:
            raise ValueError(f"Value {source!r} is {zero.dtype}; uint8 with one scale is read")
        if source in rounded:
            renamed[output] = rounded[source]
            continue
        rounded[source] = output
        floats[f"{output}.scale"] = scale
        floats[f"{output}.zero"] = zero.astype(np.int64) - UNSIGNED_SHIFT
        inputs = [producers[source].input[0], f"{output}.scale", f"{output}.zero"]
        name = f"{output}.rounded"
        nodes.append(onnx.helper.make_node("QuantizeLinear", inputs, [output], name=name))
    for node in nodes:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    nodes += [
        onnx.helper.make_node("Identity", [renamed[result.name]], [result.name])
        for result in graph.output
        if result.name in renamed
    ]
    floats.update((name, array) for name, array in values.items() if name not in floats)
    return _rebuilt(model, nodes, floats), weights


def _dequantized(
    integers: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int
) -> NDArray[np.float32]:
    if scale.ndim == 1:
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    steps = integers.astype(np.int64) - zero.astype(np.int64)
    found: NDArray[np.float32] = steps.astype(np.float32) * scale
    return found


def _rebuilt(
    model: ModelProto, nodes: list[NodeProto], arrays: Mapping[str, NDArray[Any]]
) -> ModelProto:
    """Return a graph of these nodes in an order in which they can run, with what they read."""
    used = {value for node in nodes for value in node.input}
    made = {value.name for value in model.graph.input} | set(arrays) | {""}
    ordered: list[NodeProto] = []
    while nodes:
        ready = [node for node in nodes if made.issuperset(node.input)]
        if not ready:
            raise ValueError(f"{len(nodes)} nodes of the file read what nothing makes")
        ordered += ready
        made.update(output for node in ready for output in node.output)
        nodes = [node for node in nodes if not made.issuperset(node.output)]
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(ordered)
    result.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used
    )
    return result


def _use_integers(network: fx.GraphModule, weights: Mapping[bytes, Integers]) -> None:
    """Replace layers between roundings by calls with integer weights, in place."""
    ops = torch.ops.quantized_decomposed
    for node in list(network.graph.nodes):
        layer = network.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not _is_rounded(node, network):
            continue
        found = weights.get(layer.weight.detach().numpy().tobytes())
        if found is None:
            # A linear layer of a MatMul: the file has the weight the other way round.
            found = weights.get(layer.weight.detach().numpy().T.tobytes())
            found = None if found is None else (found[0].T.copy(), found[1], 1 - found[2])
        if found is None or found[2] != 0 or found[0].shape != tuple(layer.weight.shape):
            continue
        integers, scales, axis = found
        stem = str(node.target).replace(".", "_")
        network.register_buffer(f"{stem}_integers", torch.from_numpy(integers.copy()))
        network.register_buffer(f"{stem}_scales", torch.from_numpy(scales.copy()))
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        network.register_buffer(f"{stem}_zeros", zeros)
        if layer.bias is not None:
            network.register_buffer(f"{stem}_bias", layer.bias.detach().clone())
        with network.graph.inserting_before(node):
            parts = [
                network.graph.get_attr(f"{stem}_{part}") for part in ("integers", "scales", "zeros")
            ]
            weight = network.graph.call_function(
                ops.dequantize_per_channel.default, (*parts, axis, LOW, HIGH, torch.int8)
            )
            bias = None
            if layer.bias is not None:
                bias = network.graph.get_attr(f"{stem}_bias")
            call: Any = functional.linear
            arguments: tuple[Any, ...] = (node.args[0], weight, bias)
            if isinstance(layer, nn.Conv2d):
                call = functional.conv2d
                arguments += (layer.stride, layer.padding, layer.dilation, layer.groups)
            new = network.graph.call_function(call, arguments)
        node.replace_all_uses_with(new)
        network.graph.erase_node(node)
    _separate_readers(network.graph)
    network.graph.lint()
    network.recompile()


def _separate_readers(graph: fx.Graph) -> None:
    """Give each reader of a rounded value its own conversion to floats, as exporters expect."""
    target = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    for node in list(graph.nodes):
        if node.op != "call_function" or not operator.eq(node.target, target):
            continue
        for reader in list(node.users)[1:]:
            with graph.inserting_before(reader):
                copied = graph.call_function(target, node.args)
            reader.replace_input_with(node, copied)


def _is_rounded(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether nothing but a rounding reads a layer, also behind a clamp."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    is_clamp = user.op == "call_function" and user.target in _CLAMP_CALLS
    if user.op == "call_module":
        is_clamp = isinstance(network.get_submodule(str(user.target)), _CLAMPS)
    if is_clamp:
        return _is_rounded(user, network)
    target = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return user.op == "call_function" and bool(operator.eq(user.target, target))
