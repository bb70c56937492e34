"""Which layers are better left in float32: where INT8 breaks accuracy, or where it is slower.

Accuracy: every source of rounding noise is measured alone (`compression.primitives.node_noise`).
Sources are taken away worst first, in growing steps, until the score holds; then the shortest list
that holds is sought by bisection. Speed: one profile of the float graph and one of the INT8 graph,
node by node, propose the layers whose integer form (with its conversions) is slower; a proposal is
kept only if the whole model became faster: if the interval of the ratio of the two times lies
below 1.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compression.decisions import Quantize
from compression.errors import CompressionError
from compression.onnx_graph import read_graph
from compression.primitives.node_noise import NoiseSource, noise_sources
from compression.primitives.node_profile import node_times
from compression.primitives.quantize import Calibrated, prepare, quantize_calibrated

logger = logging.getLogger(__name__)

Ratio = tuple[float, float, float]
"""A ratio of two times with the ends of its 95 % interval: value, low, high."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayer:
    """One layer (or node) that stays float, and why.

    Attributes:
        name: A layer (`layer1.0.conv1`) or a node (`layer1.0/Add`), as in `Quantize.keep_float`.
        reason: What INT8 would have cost.
        cause: What was rounded: `weights of NODE` or `values of VALUE`; None for `speed`.
        sqnr_db: Signal to noise of that cause alone, in decibels; None for `speed`.
        int8_us: Time of the node with its conversions in the INT8 graph; None for `accuracy`.
        float_us: Time of the node in the float graph; None for `accuracy`.
    """

    name: str
    reason: Literal["accuracy", "speed"]
    cause: str | None = None
    sqnr_db: float | None = None
    int8_us: float | None = None
    float_us: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayers:
    """What stays float, and what that was worth.

    Attributes:
        layers: The layers, accuracy first.
        onnx: The INT8 graph with these layers in float.
        float_score: Score of the float graph.
        int8_score: Score with every layer in INT8.
        score: Score of `onnx`.
        holds: Whether `float_score - score <= tolerance`.
        time_ratio: Time of `onnx` over its time with the accuracy layers only; None where nothing
            was timed.
        evaluations: Calls of the score and of the stopwatch that were spent.
    """

    layers: tuple[FloatLayer, ...]
    onnx: bytes
    float_score: float
    int8_score: float
    score: float
    holds: bool
    time_ratio: float | None
    evaluations: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names for `Quantize.keep_float`, sorted."""
        return tuple(sorted(layer.name for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, without the graph."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del data["onnx"]
        return {**data, "layers": [dataclasses.asdict(layer) for layer in self.layers]}


def choose_float_layers(
    onnx_float: bytes,
    calibration: NDArray[np.float32],
    decision: Quantize,
    *,
    score: Callable[[bytes], float],
    float_score: float,
    tolerance: float,
    ratio: Callable[[bytes, bytes], Ratio] | None = None,
    budget: int = 16,
) -> FloatLayers:
    """Choose the layers that stay float; `decision.keep_float` is where the search starts.

    Args:
        onnx_float: What `compression.export.export_onnx` returned.
        calibration: `n x C x H x W` float32, preprocessed.
        decision: The quantization that is to be repaired.
        score: Quality of a graph, higher is better.
        float_score: Its value for `onnx_float`.
        tolerance: Largest loss of score that is accepted, >= 0.
        ratio: Time of one graph over another's, measured side by side; None to look at accuracy
            only.
        budget: Most calls of `score` and `ratio` together, at least 1.

    Raises:
        CompressionError: The graph cannot be quantized, or the arguments are out of range.
    """
    if tolerance < 0 or budget < 1:
        raise CompressionError(f"tolerance is {tolerance} and budget {budget}; >= 0 and >= 1")
    calibrated = prepare(onnx_float, calibration, decision)
    fixed = decision.keep_float
    search = _Search(calibrated, score, float_score - tolerance, budget)
    int8_score = search.score_of(fixed)
    layers: list[FloatLayer] = []
    if not search.holds(int8_score):
        layers = _repair(search, fixed, noise_sources(calibrated, calibration))
    names = (*fixed, *(layer.name for layer in layers))
    time_ratio = None
    if ratio is not None and search.left >= 1:
        faster, time_ratio = _faster(search, onnx_float, names, calibration[:1], ratio)
        layers += faster
        names = (*names, *(layer.name for layer in faster))
    final = search.score_of(names, even_beyond_budget=True)
    logger.info(
        "%d layers stay float: score %.4f of %.4f",
        len(names),
        final,
        float_score,
        extra={"action": "float_layers_chosen"},
    )
    return FloatLayers(
        layers=tuple(layers),
        onnx=quantize_calibrated(calibrated, names),
        float_score=float_score,
        int8_score=int8_score,
        score=final,
        holds=search.holds(final),
        time_ratio=time_ratio,
        evaluations=search.spent,
    )


class _Search:
    """Scores of lists of float layers, each asked for once, within a budget."""

    def __init__(
        self,
        calibrated: Calibrated,
        score: Callable[[bytes], float],
        floor: float,
        budget: int,
    ) -> None:
        self.calibrated = calibrated
        self.floor = floor
        self.spent = 0
        self._score = score
        self._budget = budget
        self._known: dict[frozenset[str], float] = {}

    @property
    def left(self) -> int:
        return self._budget - self.spent

    def holds(self, value: float) -> bool:
        return value >= self.floor

    def score_of(self, names: tuple[str, ...], *, even_beyond_budget: bool = False) -> float:
        key = frozenset(names)
        if key not in self._known:
            if self.left < 1 and not even_beyond_budget:
                return -np.inf
            self.spent += 1
            self._known[key] = self._score(quantize_calibrated(self.calibrated, names))
        return self._known[key]


def _repair(
    search: _Search, fixed: tuple[str, ...], sources: list[NoiseSource]
) -> list[FloatLayer]:
    """Return the layers of the shortest head of `sources` that holds, or of the best one found."""

    def layers_of(count: int) -> list[FloatLayer]:
        found: dict[str, FloatLayer] = {}
        for source in sources[:count]:
            for name in source.nodes:
                if name not in fixed and name not in found:
                    found[name] = FloatLayer(
                        name=name, reason="accuracy", cause=source.cause, sqnr_db=source.sqnr_db
                    )
        return list(found.values())

    def score_of(count: int) -> float:
        return search.score_of((*fixed, *(layer.name for layer in layers_of(count))))

    scores = {0: score_of(0)}
    low, high = 0, 0
    while high < len(sources) and search.left >= 1:
        high = min(max(1, 2 * high), len(sources))
        scores[high] = score_of(high)
        if search.holds(scores[high]):
            break
        low = high
    while search.holds(scores[high]) and high - low > 1 and search.left >= 1:
        middle = (low + high) // 2
        scores[middle] = score_of(middle)
        if search.holds(scores[middle]):
            high = middle
        else:
            low = middle
    if search.holds(scores[high]):
        return layers_of(high)
    return layers_of(max(scores, key=lambda count: (scores[count], -count)))


def _faster(
    search: _Search,
    onnx_float: bytes,
    names: tuple[str, ...],
    probe: NDArray[np.float32],
    ratio: Callable[[bytes, bytes], Ratio],
) -> tuple[list[FloatLayer], float]:
    """Return the layers whose float form makes the whole model faster, and the ratio of times."""
    current = quantize_calibrated(search.calibrated, names)
    graph = read_graph(onnx_float)
    float_us = node_times(onnx_float, graph, probe)
    int8_us = node_times(current, graph, probe)
    slower = sorted(
        (n for n in float_us if n in int8_us and n not in names and int8_us[n] > float_us[n]),
        key=lambda n: float_us[n] - int8_us[n],
    )
    gained = 1.0
    kept: list[str] = []
    # All proposals at once first: usually they are few, and one timing settles them.
    trials = [slower, *([name] for name in slower if len(slower) > 1)] if slower else []
    for proposal in trials:
        if search.left < 1 or (kept and proposal is not slower and len(kept) == len(slower)):
            break
        search.spent += 1
        proposed = quantize_calibrated(search.calibrated, (*names, *kept, *proposal))
        value, _, high = ratio(proposed, current)
        if high < 1.0:
            current, gained = proposed, gained * value
            kept += [name for name in proposal if name not in kept]
    layers = [
        FloatLayer(name=n, reason="speed", int8_us=int8_us[n], float_us=float_us[n]) for n in kept
    ]
    return layers, gained
