"""How much noise 8 bits add to a float graph, each source of noise taken alone.

A source is either the weights of one layer or one activation. Rounded weights spoil that layer
only. A rounded activation spoils every node that reads it, and stays rounded as long as one of the
nodes that make or read it is quantized: its remedy names all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compression.onnx_graph import LAYER_OPS
from compression.primitives.calibrate import Range, float_values, run_values
from compression.primitives.quantize import COMPUTE_OPS, Calibrated
from compression.primitives.weight_grid import (
    GridWeight,
    channel_axis,
    round_weight,
    weighted_nodes,
)

# Noise ratios settle with few inputs: they are averages over all positions and channels.
_ROWS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseSource:
    """One thing that is rounded, and what must stay float for it not to be.

    Attributes:
        cause: `weights of NODE` or `values of VALUE`.
        nodes: Names for `Quantize.keep_float` that take the rounding away.
        noise_ratio: Noise power over signal power where it does most harm, >= 0.
    """

    cause: str
    nodes: tuple[str, ...]
    noise_ratio: float

    @property
    def sqnr_db(self) -> float:
        """Signal over noise in decibels; 120 where there is no noise to speak of."""
        return float(-10.0 * np.log10(max(self.noise_ratio, 1e-12)))


def noise_sources(calibrated: Calibrated, inputs: NDArray[np.float32]) -> list[NoiseSource]:
    """Return every source of noise, worst first.

    Every node is computed again from the exact float inputs with just one of them rounded as the
    INT8 graph would round it, and compared with the exact output.

    Args:
        calibrated: A float graph and its ranges.
        inputs: `n x C x H x W` float32; the first 16 are used.
    """
    model = onnx.ModelProto()
    model.CopyFrom(calibrated.model)
    floats = set(float_values(model))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    judged = [
        node
        for node in list(model.graph.node)
        if node.op_type in COMPUTE_OPS and node.output[0] in floats
    ]
    twins: list[tuple[str, str, str]] = []  # cause, exact value, value with that cause rounded
    for node in judged:
        for index, value in enumerate(node.input):
            if value in weights and node.op_type in LAYER_OPS and index < 2:
                grid = calibrated.weights.get(value) or _nearest(node, weights[value])
                _add_rounded_weight(model, node, index, grid)
                cause = f"weights of {node.name}"
            elif value in calibrated.ranges:
                _add_rounded_value(model, node, index, calibrated.ranges[value])
                cause = f"values of {value}"
            else:
                continue
            twins.append((cause, node.output[0], _twin_name(node, index)))
    ratios = _noise_ratios(model, inputs[:_ROWS], twins)
    remedies = _remedies(calibrated.model, judged)
    sources = [NoiseSource(cause, remedies[cause], ratio) for cause, ratio in ratios.items()]
    return sorted(sources, key=lambda source: (-source.noise_ratio, source.cause))


def weight_noise(
    calibrated: Calibrated, inputs: NDArray[np.float32], bits: int
) -> dict[str, float]:
    """Return noise over signal in the outputs of each layer whose weights alone have `bits` bits.

    Args:
        calibrated: A float graph.
        inputs: `n x C x H x W` float32; the first 16 are used.
        bits: Of a weight, 2 to 8.

    Returns:
        Noise power over signal power by node name.
    """
    model = onnx.ModelProto()
    model.CopyFrom(calibrated.model)
    twins: list[tuple[str, str, str]] = []
    for layer in weighted_nodes(calibrated.model):
        grid = round_weight(layer.values, layer.axis, bits)
        _add_rounded_weight(model, layer.node, 1, grid)
        twins.append((layer.node.name, layer.node.output[0], _twin_name(layer.node, 1)))
    return _noise_ratios(model, inputs[:_ROWS], twins)


def _nearest(node: NodeProto, tensor: TensorProto) -> GridWeight:
    values = numpy_helper.to_array(tensor)
    return round_weight(values, channel_axis(node, values.ndim))


def _noise_ratios(
    model: ModelProto, inputs: NDArray[np.float32], twins: list[tuple[str, str, str]]
) -> dict[str, float]:
    signal = dict.fromkeys((twin for _, _, twin in twins), 0.0)
    noise = dict.fromkeys(signal, 0.0)
    wanted = list(dict.fromkeys(name for _, exact, twin in twins for name in (exact, twin)))
    for values in run_values(model, inputs, wanted):
        for _, exact, twin in twins:
            reference = values[exact].astype(np.float64)
            signal[twin] += float(np.sum(reference**2))
            noise[twin] += float(np.sum((values[twin] - reference) ** 2))
    ratios: dict[str, float] = {}
    for cause, _, twin in twins:
        ratio = noise[twin] / signal[twin] if signal[twin] > 0 else 0.0
        ratios[cause] = max(ratios.get(cause, 0.0), ratio)
    return ratios


def _remedies(model: ModelProto, judged: list[NodeProto]) -> dict[str, tuple[str, ...]]:
    """Return, by cause, the judged nodes that must stay float."""
    names = {node.name for node in judged}
    producers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)

    def above(value: str) -> Iterable[str]:
        node = producers.get(value)
        if node is None:
            return ()
        return (node.name,) if node.name in names else above(node.input[0])

    def below(value: str) -> Iterable[str]:
        for node in readers.get(value, ()):
            if node.name in names:
                yield node.name
            else:
                for output in node.output:
                    yield from below(output)

    remedies: dict[str, tuple[str, ...]] = {
        f"weights of {node.name}": (node.name,) for node in judged
    }
    for node in judged:
        for value in node.input:
            around = (*above(value), *below(value))
            remedies[f"values of {value}"] = tuple(dict.fromkeys(around))
    return remedies


def _twin_name(node: NodeProto, index: int) -> str:
    return f"{node.name}.alone.{index}"


def _add_twin(model: ModelProto, node: NodeProto, index: int, value: str) -> None:
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.name = _twin_name(node, index)
    twin.input[index] = value
    twin.output[:] = [_twin_name(node, index)]
    model.graph.node.append(twin)


def _add_rounded_weight(model: ModelProto, node: NodeProto, index: int, grid: GridWeight) -> None:
    stem = f"{_twin_name(node, index)}.rounded"
    model.graph.initializer.append(numpy_helper.from_array(grid.values, stem))
    _add_twin(model, node, index, stem)


def _add_rounded_value(model: ModelProto, node: NodeProto, index: int, bounds: Range) -> None:
    """Round to the uint8 grid that spans the range and holds zero exactly."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    scale = (high - low) / 255.0 or 1.0
    stem = f"{_twin_name(node, index)}.rounded"
    grid = [f"{stem}.s", f"{stem}.z"]
    zero = np.array(round(-low / scale), np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), grid[0]))
    model.graph.initializer.append(numpy_helper.from_array(zero, grid[1]))
    value = node.input[index]
    model.graph.node.append(helper.make_node("QuantizeLinear", [value, *grid], [f"{stem}.q"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", [f"{stem}.q", *grid], [stem]))
    _add_twin(model, node, index, stem)
