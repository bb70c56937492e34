"""Ranges of the values inside an ONNX graph, found by running calibration inputs through it.

Four calibrators: `minmax` keeps every value seen; `percentile` drops the rarest 0.01 % of values
at either end; `entropy` picks the symmetric clip whose 8-bit histogram loses the least information
(KL divergence; Migacz, "8-bit inference with TensorRT", GTC 2017); `mse` picks the range whose 256
levels have the least squared error, clipping and rounding together (as a goal: Banner et al.,
"Post training 4-bit quantization", NeurIPS 2019; here searched on the histogram, without their
assumption about its shape).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from compression.decisions import Calibrator
from compression.errors import CompressionError
from compression.onnx_session import open_session

CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)

Range = tuple[float, float]

# Rows per run: all values of the graph are in memory at once, about 2 MB a row for a ResNet-56.
_BATCH = 16
_BINS = 2048
_TAIL = 1e-4
# A clip is tried at every 16th bin: finer steps move a threshold by less than one percent.
_ENTROPY_STRIDE = 16
_FEWEST_KEPT_BINS = 128
_MSE_STEPS = 64
_LEVELS = 256


def float_values(model: ModelProto) -> list[str]:
    """Return the graph inputs and node outputs that are float32, in forward order.

    The model must carry inferred types.
    """
    typed = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in typed}
    names = [value.name for value in model.graph.input]
    names += [output for node in model.graph.node for output in node.output]
    return [name for name in names if types.get(name) == TensorProto.FLOAT]


def run_values(
    model: ModelProto, inputs: NDArray[np.float32], names: list[str]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the named values for the inputs, some rows at a time; nodes run exactly as written."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {value.name for value in probe.graph.output}
    given = {value.name for value in probe.graph.input}
    for name in names:
        if name not in present and name not in given:
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            probe.graph.output.append(value)
    session = open_session(probe.SerializeToString(), optimize=False)
    wanted = [name for name in names if name not in given]
    (input_name,) = given
    for start in range(0, len(inputs), _BATCH):
        rows = np.ascontiguousarray(inputs[start : start + _BATCH])
        values = dict(zip(wanted, session.run(wanted, {input_name: rows}), strict=True))
        if input_name in names:
            values[input_name] = rows
        yield values


def value_ranges(
    model: ModelProto, inputs: NDArray[np.float32], calibrator: str
) -> dict[str, Range]:
    """Return lowest and highest value to represent, for every float32 value of the graph.

    Args:
        model: A float graph with inferred types and one input.
        inputs: `n x C x H x W` float32, preprocessed, n >= 1.
        calibrator: One of `CALIBRATORS`.

    Raises:
        CompressionError: No inputs, an unknown calibrator, or a value that is not finite.
    """
    if calibrator not in CALIBRATORS:
        known = ", ".join(CALIBRATORS)
        raise CompressionError(f"Unknown calibrator {calibrator!r}; known: {known}")
    if len(inputs) == 0:
        raise CompressionError("Calibration needs at least 1 input; 0 were given")
    names = float_values(model)
    extremes = _extremes(model, inputs, names)
    if calibrator == "minmax":
        return extremes
    clip = {"percentile": _percentile_range, "entropy": _entropy_range, "mse": _mse_range}
    counts = _histograms(model, inputs, extremes)
    return {name: clip[calibrator](counts[name], *extremes[name]) for name in names}


def _extremes(model: ModelProto, inputs: NDArray[np.float32], names: list[str]) -> dict[str, Range]:
    extremes: dict[str, Range] = {}
    for values in run_values(model, inputs, names):
        for name, value in values.items():
            low, high = float(value.min()), float(value.max())
            if not np.isfinite(low) or not np.isfinite(high):
                raise CompressionError(f"Value {name!r} is not finite on the calibration inputs")
            old_low, old_high = extremes.get(name, (low, high))
            extremes[name] = (min(low, old_low), max(high, old_high))
    return extremes


def _histograms(
    model: ModelProto, inputs: NDArray[np.float32], extremes: Mapping[str, Range]
) -> dict[str, NDArray[np.int64]]:
    counts = {name: np.zeros(_BINS, np.int64) for name in extremes}
    for values in run_values(model, inputs, list(extremes)):
        for name, value in values.items():
            low, high = extremes[name]
            if high > low:
                index = ((value.ravel() - low) * ((_BINS - 1) / (high - low))).astype(np.int64)
                counts[name] += np.bincount(index, minlength=_BINS)
    return counts


def _percentile_range(counts: NDArray[np.int64], low: float, high: float) -> Range:
    if high <= low:
        return low, high
    below = np.cumsum(counts) / counts.sum()
    edges = np.linspace(low, high, _BINS + 1)
    first = int(np.searchsorted(below, _TAIL, side="right"))
    last = int(np.searchsorted(below, 1.0 - _TAIL, side="left"))
    return float(edges[first]), float(edges[min(last + 1, _BINS)])


def _entropy_range(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Clip |x| at the bin where the 8-bit histogram diverges least from the full one."""
    if high <= low:
        return low, high
    centres = np.abs(np.linspace(low, high, 2 * _BINS + 1)[1::2])
    reach = max(abs(low), abs(high))
    bins = np.minimum((centres / reach * _BINS).astype(np.int64), _BINS - 1)
    folded = np.zeros(_BINS, np.float64)
    np.add.at(folded, bins, counts)
    # Half of what follows a ReLU is exactly zero, which every scale represents: left in, that spike
    # would make the finest resolution at zero, and so the hardest clip, look best.
    folded[0] = folded[1]
    # One-sided values have all 256 levels on their side; two-sided ones about half of them.
    levels = 256 if low >= 0 or high <= 0 else _FEWEST_KEPT_BINS
    candidates = range(levels, _BINS + 1, _ENTROPY_STRIDE)
    best = min(candidates, key=lambda kept: _divergence(folded, kept, levels))
    limit = reach * best / _BINS
    return max(low, -limit), min(high, limit)


def _divergence(counts: NDArray[np.float64], kept: int, levels: int) -> float:
    """KL divergence of the clipped histogram from its `levels`-level form; all of it finite."""
    inside = counts[:kept]
    reference = inside.copy()
    reference[-1] += counts[kept:].sum()
    starts = (np.arange(levels) * kept) // levels
    widths = np.diff(np.append(starts, kept))
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
    mean = np.add.reduceat(inside, starts) / np.maximum(filled, 1.0)
    coarse = np.where(inside > 0, np.repeat(mean, widths), 0.0)
    # A pinch of mass everywhere keeps bins that only the clipped tail fills from being infinite.
    p = (reference + 1e-4) / (reference + 1e-4).sum()
    q = (coarse + 1e-4) / (coarse + 1e-4).sum()
    return float(np.sum(p * np.log(p / q)))


def _mse_range(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Shrink either end in turn, twice, to the range with the least squared error."""
    if high <= low:
        return low, high
    step = (high - low) / (_BINS - 1)
    values: NDArray[np.float64] = low + step * (np.arange(_BINS, dtype=np.float64) + 0.5)
    # The bins are as narrow as some levels: within a bin values are spread evenly, and what a
    # ReLU cut off is exactly zero, not half a bin beside it.
    values[np.abs(values) <= step / 2 * (1 + 1e-9)] = 0.0
    shares = [1.0 - index / _MSE_STEPS for index in range(_MSE_STEPS)]
    best = (min(low, 0.0), max(high, 0.0))
    for _ in range(2):
        for end in (1, 0):
            if best[end] != 0.0:
                tried = [
                    (best[0], bound) if end else (bound, best[1])
                    for bound in ((high if end else low) * share for share in shares)
                ]
                best = min(tried, key=lambda bounds: _squared_error(counts, values, step, bounds))
    return max(low, best[0]), min(high, best[1])


def _squared_error(
    counts: NDArray[np.int64], values: NDArray[np.float64], step: float, bounds: Range
) -> float:
    """Return the summed squared error of the values on the uint8 grid that spans `bounds`.

    Inside, rounding errors are taken as even over a level (its width squared over 12) wherever a
    bin is not a single value.
    """
    scale = (bounds[1] - bounds[0]) / (_LEVELS - 1)
    outside = np.maximum(values - bounds[1], 0.0) + np.maximum(bounds[0] - values, 0.0)
    rounding = np.where(values == 0.0, 0.0, scale**2 / 12.0)
    return float(np.sum(counts * np.where(outside > 0, outside**2 + step**2 / 12.0, rounding)))
