"""What a fresh process pays for a model: memory, loading, the first inference."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from search.device import DeviceSpec
from search.measurement import Interval, Reading
from workers.meters import open_runtime
from workers.meters.fresh_process import ask
from workers.meters.load_process import MODULE

LOAD_TIMEOUT_S = 120.0
REPEATS = 3

METRICS_OF: Mapping[str, str] = {
    "load_ms": "load_ms",
    "first_inference_ms": "first_inference_ms",
    "peak_memory_bytes": "peak_bytes",
}
"""Metric to the field of `Startup` that it is the median of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """What one process saw.

    Attributes:
        resident_bytes: Memory that loading and running once added and that is kept.
        peak_bytes: Most memory that was resident more than before; None where it is not told.
        load_ms: Time of loading.
        first_inference_ms: Time of the first call.
    """

    resident_bytes: int
    peak_bytes: int | None
    load_ms: float
    first_inference_ms: float


def start_once(file: bytes, device: DeviceSpec) -> Startup:
    """Load a file, as the device's runtime loads it, in a fresh process and run it once.

    Raises:
        ProcessFailed: It could not be loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(file)
        question = {
            "file": str(path),
            "runtime": device.runtime,
            "threads": device.threads,
            "batch": device.batch,
        }
        return Startup(**ask(MODULE, question, threads=device.threads, timeout_s=LOAD_TIMEOUT_S))


def startup_readings(
    candidate: bytes, baseline: bytes, device: DeviceSpec, *, seed: int, repeats: int = REPEATS
) -> tuple[Reading, ...]:
    """Return load_ms, first_inference_ms and peak_memory_bytes beside the baseline's.

    Both in turns, in a drawn order, each time in a fresh process. A value is the median over the
    processes, `low` and `high` the least and the most, and so of the ratios of the turns. The
    file is read before, so that no disk is timed.

    Args:
        candidate: ONNX bytes.
        baseline: ONNX bytes of the dense model; equal ones are measured once, ratio 1.
        device: Runtime, threads and batch.
        seed: Of the order.
        repeats: Processes for each.

    Raises:
        DeviceUnknown: The runtime is unknown or the machine has too few cores.
        ValueError: The runtime cannot load or run a model.
    """
    rng = np.random.default_rng([seed, 2])
    seen: list[list[Startup]] = [[], []]
    with open_runtime(device.runtime, threads=device.threads, seed=seed) as runtime:
        onnx = [candidate] if candidate == baseline else [candidate, baseline]
        files = [runtime.build(file, device.batch) for file in onnx]
        for _ in range(repeats):
            for index in rng.permutation(len(files)):
                seen[index].append(start_once(files[index], device))
    return tuple(
        reading
        for metric, field in METRICS_OF.items()
        if (reading := _reading(metric, field, seen, device)) is not None
    )


def _reading(
    metric: str, field: str, seen: Sequence[Sequence[Startup]], device: DeviceSpec
) -> Reading | None:
    values, dense = ([getattr(startup, field) for startup in side] for side in seen)
    if any(value is None for value in (*values, *dense)):
        return None
    ratio: Interval | None = Interval(value=1.0, low=1.0, high=1.0)
    if dense:
        pairs = [ours / theirs for ours, theirs in zip(values, dense, strict=True) if theirs > 0]
        ratio = _spread(pairs) if pairs else None
    spread = _spread(values)
    return Reading(
        metric=metric,
        value=spread.value,
        low=spread.low,
        high=spread.high,
        n=len(values),
        device=device.name,
        statistic="p50",
        ratio=ratio,
    )


def _spread(values: Sequence[float]) -> Interval:
    """Return the median between the least and the most."""
    return Interval(
        value=float(statistics.median(values)), low=float(min(values)), high=float(max(values))
    )
