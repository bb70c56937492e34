"""Cross-layer equalization: even ranges of channels before quantization, the function unchanged.

Reference:
    Nagel et al. (2019), "Data-Free Quantization Through Weight Equalization and Bias Correction",
    sections 4.1 and appendix A, https://arxiv.org/abs/1906.04721. For f(s x) = s f(x), s > 0:
    W1 <- S^-1 W1, b1 <- S^-1 b1, W2 <- W2 S with s_i = sqrt(r1_i r2_i) / r2_i (equation 11), where
    r1_i and r2_i are the largest absolute weights of output channel i of the first and of input
    channel i of the second layer.

Deviations:
    Clipping activations (Clip, ReLU6) end a pair where the paper replaces ReLU6 by ReLU: that
    would be another function. High biases are not absorbed: activation ranges are calibrated here,
    not taken from BatchNorm.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

# f(s x) = s f(x) for s > 0 within every channel, and no mixing of channels.
_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"}
)
_ROUNDS = 40
_SETTLED = 1e-4
# A channel whose weights are all but zero would ask for a scale without bound.
_LARGEST_SCALE = 1e4


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two layers with nothing but a positively homogeneous function between them.

    Attributes:
        first: Makes the channels.
        second: The only one that reads them.
    """

    first: NodeProto
    second: NodeProto


def equalize(model: ModelProto) -> ModelProto:
    """Return the graph with equalized weights; its outputs are those of `model` but for rounding.

    Args:
        model: A float graph with BatchNorm folded; it stays as it is.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    pairs = equalizable(result)
    touched = {name for p in pairs for name in (*p.first.input[1:], p.second.input[1])}
    weights = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in result.graph.initializer
        if tensor.name in touched
    }
    for _ in range(_ROUNDS):
        change = max((_even_out(pair, weights) for pair in pairs), default=0.0)
        if change < _SETTLED:
            break
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            values = weights[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


def equalizable(model: ModelProto) -> list[Pair]:
    """Return the pairs that can be equalized, in graph order of their first layers."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    outputs = {value.name for value in graph.output}

    def private(node: NodeProto) -> bool:
        tensors = node.input[1:]
        return all(name in constants and len(readers[name]) == 1 for name in tensors)

    def sole_reader(node: NodeProto) -> NodeProto | None:
        value = node.output[0]
        found = readers.get(value, [])
        return found[0] if len(found) == 1 and value not in outputs else None

    pairs = []
    for node in graph.node:
        if not (_is_layer(node) and private(node)):
            continue
        reader = sole_reader(node)
        while reader is not None and reader.op_type in _HOMOGENEOUS:
            reader = sole_reader(reader)
        if reader is None or not (_is_layer(reader) and private(reader)):
            continue
        if reader.op_type == node.op_type:
            pairs.append(Pair(node, reader))
    return pairs


def equalizing_scales(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return s for channels with weight ranges r1 (`first`) and r2; 1 where either is zero."""
    useful = (first > 0) & (second > 0)
    scales = np.sqrt(np.where(useful, first, 1.0) / np.where(useful, second, 1.0))
    return np.clip(scales, 1.0 / _LARGEST_SCALE, _LARGEST_SCALE)


def _even_out(pair: Pair, weights: dict[str, NDArray[np.float64]]) -> float:
    """Equalize one pair and return the largest change of a channel, as |log s|."""
    made = _by_output(pair.first, weights[pair.first.input[1]])
    read = _by_input(pair.second, weights[pair.second.input[1]])
    scales = equalizing_scales(np.abs(made).max(axis=1), np.abs(read).max(axis=(1, 3)).reshape(-1))
    made /= scales[:, None]
    read *= scales.reshape(len(read), 1, -1, 1)
    if len(pair.first.input) > 2:
        weights[pair.first.input[2]] /= scales
    return float(np.abs(np.log(scales)).max())


def _by_output(node: NodeProto, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a view `output channels x rest`."""
    if node.op_type == "Conv" or _attribute(node, "transB", 0):
        return weight.reshape(len(weight), -1)
    return weight.T


def _by_input(node: NodeProto, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a view `groups x outputs of a group x inputs of a group x kernel`."""
    if node.op_type == "Gemm":
        by_output = weight if _attribute(node, "transB", 0) else weight.T
        return by_output[None, :, :, None]
    groups = _attribute(node, "group", 1)
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def _is_layer(node: NodeProto) -> bool:
    if node.op_type == "Conv":
        return True
    plain = _attribute(node, "transA", 0) == 0
    return (
        node.op_type == "Gemm"
        and plain
        and all(a.f == 1.0 for a in node.attribute if a.name in ("alpha", "beta"))
    )


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
