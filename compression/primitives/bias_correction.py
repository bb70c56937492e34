"""Empirical bias correction: the mean of every layer's outputs is that of the float network again.

Reference:
    Nagel et al. (2019), "Data-Free Quantization Through Weight Equalization and Bias Correction",
    section 4.2 and appendix D (the empirical form), https://arxiv.org/abs/1906.04721: for every
    output channel, b <- b + E[y] - E[y'] with y of the float and y' of the quantized network,
    layer after layer in forward order, so that a layer sees corrected inputs.

Deviations:
    The network is quantized entirely, activations included, so what they shift is corrected, too.
    The correction is a whole number of steps of the int32 bias.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from compression.primitives.calibrate import run_values
from compression.primitives.node_walk import NodeWalk

_LAYERS = ("Conv", "Gemm")


def correct_biases(
    quantized: ModelProto, exact: ModelProto, inputs: NDArray[np.float32]
) -> ModelProto:
    """Return the quantized graph with corrected biases.

    Layers without a bias of their own are passed over.

    Args:
        quantized: In QDQ form, its layers named like those of `exact`; it stays as it is.
        exact: The float graph.
        inputs: `n x C x H x W` float32, preprocessed.
    """
    means = output_means(exact, inputs)
    walk = NodeWalk(quantized, inputs)
    owned = _own_biases(quantized)
    for node in walk:
        if node.name in owned and node.name in means:
            output = walk.values[node.output[0]].astype(np.float32)
            shift = means[node.name] - _channel_mean(output)
            applied = _add_to_bias(walk, owned[node.name], shift)
            shape = (-1,) + (1,) * (output.ndim - 2)
            walk.values[node.output[0]] = output + applied.reshape(shape).astype(np.float32)
    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    changed = {bias for bias, _ in owned.values()}
    for tensor in result.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(walk.weights[tensor.name], tensor.name))
    return result


def output_means(model: ModelProto, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Return the mean output of every channel of every layer, by node name."""
    layers = {node.output[0]: node.name for node in model.graph.node if node.op_type in _LAYERS}
    sums = {name: np.zeros(1) for name in layers.values()}
    for values in run_values(model, inputs, list(layers)):
        for value, name in layers.items():
            sums[name] = sums[name] + _channel_mean(values[value]) * len(values[value])
    return {name: total / len(inputs) for name, total in sums.items()}


def _channel_mean(output: NDArray[np.float32]) -> NDArray[np.float64]:
    others = tuple(axis for axis in range(output.ndim) if axis != 1)
    return np.asarray(output.mean(axis=others, dtype=np.float64))


def _own_biases(model: ModelProto) -> dict[str, tuple[str, str | None]]:
    """Return, by layer, the name of the bias that only it reads, and of its scale if quantized."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    reads: dict[str, int] = {}
    for node in graph.node:
        for value in node.input:
            reads[value] = reads.get(value, 0) + 1
    found: dict[str, tuple[str, str | None]] = {}
    for node in graph.node:
        if node.op_type not in _LAYERS or len(node.input) < 3 or _scaled(node):
            continue
        bias, scale = node.input[2], None
        if bias in producers and producers[bias].op_type == "DequantizeLinear":
            if reads[bias] != 1:
                continue
            bias, scale = producers[bias].input[:2]
        if bias in constants and reads[bias] == 1:
            found[node.name] = (bias, scale)
    return found


def _scaled(node: NodeProto) -> bool:
    return any(a.name == "beta" and a.f != 1.0 for a in node.attribute)


def _add_to_bias(
    walk: NodeWalk, names: tuple[str, str | None], shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Add to a bias what it can represent of `shift`, and return that."""
    bias, scale_name = names
    old = walk.weights[bias].astype(np.float64)
    if scale_name is None:
        walk.weights[bias] = (old + shift).astype(np.float32)
        return shift
    scale = walk.weights[scale_name].astype(np.float64)
    limits = np.iinfo(np.int32)
    new = np.clip(old + np.rint(shift / scale), limits.min, limits.max)
    walk.weights[bias] = new.astype(np.int32)
    return np.asarray((new - old) * scale)
