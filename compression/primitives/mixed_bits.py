"""Which layers bear weights of fewer bits: the least damage for every bit that is saved first.

Every layer's weights are rounded to the few bits alone (`node_noise`), and layers are ordered by
noise per bit saved. The longest head of that order that holds the score is sought by bisection,
in the INT8 graph that is deployed. No runtime here has kernels for fewer than 8 bits: the weights
stay int8 tensors with few values, which are small when coded and cost what 8 bits cost to compute.

Reference:
    Dong et al. (2019), "HAWQ", https://arxiv.org/abs/1905.03696: layers ordered by sensitivity
    over size.

Deviations:
    Sensitivity is the noise in a layer's own outputs, not the Hessian of a loss: it needs neither
    labels nor gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from compression.decisions import Quantize, QuantizeWeights
from compression.errors import CompressionError
from compression.onnx_graph import layer_of
from compression.primitives.adaround import learn_rounding
from compression.primitives.node_noise import weight_noise
from compression.primitives.quantize import (
    RECONSTRUCTION_ROWS,
    Calibrated,
    prepare,
    quantize_calibrated,
)
from compression.primitives.weight_grid import (
    GridWeight,
    WeightedNode,
    round_weight,
    weighted_nodes,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LowBitLayer:
    """One layer, and what fewer bits do to it.

    Attributes:
        name: Of the layer, as in a plan's sites.
        saved_bits: How many bits its weights lose in sum.
        noise_ratio: Noise power over signal power of its outputs, its weights alone rounded.
    """

    name: str
    saved_bits: int
    noise_ratio: float

    @property
    def damage(self) -> float:
        """Noise per bit saved."""
        return self.noise_ratio / self.saved_bits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LowBitLayers:
    """The layers with fewer bits.

    Attributes:
        layers: Least damage first.
        bits: Of their weights.
        onnx: The integer graph with them.
        int8_score: Score with all weights in 8 bits.
        score: Score of `onnx`.
        holds: Whether the score is within the tolerance.
        evaluations: Calls of the score.
    """

    layers: tuple[LowBitLayer, ...]
    bits: int
    onnx: bytes
    int8_score: float
    score: float
    holds: bool
    evaluations: int

    @property
    def decisions(self) -> Mapping[str, QuantizeWeights]:
        """What a plan holds for these layers, by site."""
        return {layer.name: QuantizeWeights(bits=self.bits) for layer in self.layers}


def choose_low_bit_layers(
    onnx_float: bytes,
    calibration: NDArray[np.float32],
    decision: Quantize,
    *,
    score: Callable[[bytes], float],
    float_score: float,
    tolerance: float,
    bits: int = 4,
    budget: int = 8,
) -> LowBitLayers:
    """Give as many layers as the tolerance allows weights of `bits` bits instead of 8.

    The first and the last layer keep 8 bits.

    Args:
        onnx_float: What `compression.export.export_onnx` returned.
        calibration: `n x C x H x W` float32, preprocessed.
        decision: How everything else is quantized; its rounding is that of the few bits, too.
        score: Quality of a graph, higher is better.
        float_score: Its value for `onnx_float`.
        tolerance: Largest loss of score that is accepted, >= 0.
        bits: 2 to 7.
        budget: Most calls of `score`, at least 1.

    Raises:
        CompressionError: The graph cannot be quantized, or the arguments are out of range.
    """
    if tolerance < 0 or budget < 1 or not 2 <= bits <= 7:
        raise CompressionError(
            f"tolerance is {tolerance}, budget {budget} and bits {bits}; >= 0, >= 1 and 2..7"
        )
    calibrated = prepare(onnx_float, calibration, decision)
    order = low_bit_order(calibrated, calibration, bits, decision.keep_float)
    nodes = weighted_nodes(calibrated.model)
    scores: dict[int, tuple[float, bytes]] = {}

    def holds(count: int) -> bool:
        if count not in scores:
            names = {layer.name for layer in order[:count]}
            weights = _low_bits(calibrated, nodes, names, bits, calibration, decision)
            graph = quantize_calibrated(
                dataclasses.replace(calibrated, weights=weights), decision.keep_float
            )
            scores[count] = (score(graph), graph)
        return scores[count][0] >= float_score - tolerance

    low, high = 0, len(order)
    if holds(0) and len(scores) < budget and high > 0:
        # All of them first: often they are all borne, and one score settles it.
        if holds(high):
            low = high
        while high - low > 1 and len(scores) < budget:
            middle = (low + high) // 2
            if holds(middle):
                low = middle
            else:
                high = middle
    return LowBitLayers(
        layers=tuple(order[:low]),
        bits=bits,
        onnx=scores[low][1],
        int8_score=scores[0][0],
        score=scores[low][0],
        holds=holds(low),
        evaluations=len(scores),
    )


def low_bit_order(
    calibrated: Calibrated,
    inputs: NDArray[np.float32],
    bits: int,
    keep_float: tuple[str, ...] = (),
) -> list[LowBitLayer]:
    """Return all layers but the first and the last, least damage per saved bit first."""
    nodes = weighted_nodes(calibrated.model)[1:-1]
    settled = {
        name for name, grid in calibrated.weights.items() if np.abs(grid.integers).max() < 64
    }
    noise = weight_noise(calibrated, inputs, bits)
    found: dict[str, LowBitLayer] = {}
    for node in nodes:
        name = layer_of(node.node.name)
        if name in keep_float or node.node.name in keep_float or node.weight in settled:
            continue
        saved = (8 - bits) * node.values.size
        ratio = max(noise[node.node.name], found[name].noise_ratio if name in found else 0.0)
        found[name] = LowBitLayer(name=name, saved_bits=saved, noise_ratio=ratio)
    return sorted(found.values(), key=lambda layer: (layer.damage, layer.name))


def _low_bits(
    calibrated: Calibrated,
    nodes: list[WeightedNode],
    names: set[str],
    bits: int,
    inputs: NDArray[np.float32],
    decision: Quantize,
) -> dict[str, GridWeight]:
    """Return the calibrated weights with those of some layers in few bits."""
    chosen = [node for node in nodes if layer_of(node.node.name) in names]
    if decision.rounding == "adaround" and chosen:
        return learn_rounding(
            calibrated.model,
            inputs[:RECONSTRUCTION_ROWS],
            bits={node.node.name: bits for node in chosen},
        )
    return {
        **calibrated.weights,
        **{node.weight: round_weight(node.values, node.axis, bits) for node in chosen},
    }
