"""Latency and throughput of a deployed file on a device, beside the dense baseline."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Iterator

import numpy as np

from search.device import DeviceSpec
from search.measurement import Interval, Reading
from workers.meters import LoadedModel, open_runtime
from workers.meters.stopwatch import (
    Comparison,
    StoppingRule,
    Timed,
    Times,
    compare,
    inverse,
    quantile,
    quantile_ratio,
    widened,
)

EXACTLY_ONE = Interval(value=1.0, low=1.0, high=1.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatencyResult:
    """Readings with the times behind them.

    Attributes:
        readings: latency_ms p50 and p95, throughput p50, each with its ratio to the baseline.
        candidate_ms: Raw times of the candidate, one per round, in order.
        baseline_ms: Raw times of the baseline in the same rounds.
        ratio: Candidate's median over the baseline's as measured; of a baseline against itself
            this is the A/A check.
        regime: How caches were left between calls: `interleaved`.
        warnings: Why the readings should be doubted; also in each reading.
        seconds: Wall time of it all, loading included.
    """

    readings: tuple[Reading, ...]
    candidate_ms: Times
    baseline_ms: Times
    ratio: Interval
    regime: str
    warnings: tuple[str, ...]
    seconds: float


def time_onnx(
    candidate: bytes,
    baseline: bytes,
    device: DeviceSpec,
    *,
    seed: int,
    max_seconds: float = 10.0,
    width: float = 0.05,
) -> LatencyResult:
    """Time a candidate beside the dense baseline; the node must be quiet (`QuietNode.alone`).

    Batch 1, one fixed random input for each, both sessions in this process, garbage collection
    off. A 95 % interval that excludes 1 means that the two differ.

    Args:
        candidate: ONNX bytes.
        baseline: ONNX bytes of the dense model.
        device: Runtime and threads.
        seed: Of the input and of the order of calls.
        max_seconds: At most this much timing, warm-up included.
        width: Wanted (high - low) / value of the interval of the ratio.

    Raises:
        DeviceUnknown: The runtime is unknown or the machine has too few cores.
    """
    start = time.monotonic()
    rule = StoppingRule(width=width, max_seconds=max_seconds)
    seen = _beside(candidate, baseline, device, seed, rule)
    rng = np.random.default_rng([seed, 1])
    p95_ratio = widened(
        quantile_ratio(seen.candidate_ms, seen.baseline_ms, 0.95, rng), rule.placement
    )
    return LatencyResult(
        readings=_readings(seen.candidate_ms, device, seen.ratio, p95_ratio, seen.warnings),
        candidate_ms=seen.candidate_ms,
        baseline_ms=seen.baseline_ms,
        ratio=seen.ratio,
        regime=seen.regime,
        warnings=seen.warnings,
        seconds=time.monotonic() - start,
    )


def time_baseline(
    baseline: bytes,
    device: DeviceSpec,
    *,
    seed: int,
    max_seconds: float = 10.0,
    width: float = 0.05,
) -> LatencyResult:
    """Time the baseline beside a second copy of itself (A/A).

    Its readings are of both copies' times together and have the ratio 1 by definition; `ratio` is
    what the stopwatch said, and a warning is given when that interval excludes 1. Arguments and
    errors as for `time_onnx`.
    """
    start = time.monotonic()
    rule = StoppingRule(width=width, max_seconds=max_seconds)
    seen = _beside(baseline, baseline, device, seed, rule)
    warnings = seen.warnings
    ratio = seen.ratio
    if not ratio.low <= 1.0 <= ratio.high:
        told_apart = (
            f"the baseline was told apart from itself, as happens to 1 comparison in 20 by chance: "
            f"ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        )
        warnings = (*warnings, told_apart)
    both_ms = np.stack([seen.candidate_ms, seen.baseline_ms], axis=1).ravel()
    return LatencyResult(
        readings=_readings(both_ms, device, EXACTLY_ONE, EXACTLY_ONE, warnings),
        candidate_ms=seen.candidate_ms,
        baseline_ms=seen.baseline_ms,
        ratio=ratio,
        regime=seen.regime,
        warnings=warnings,
        seconds=time.monotonic() - start,
    )


def _beside(
    candidate: bytes, baseline: bytes, device: DeviceSpec, seed: int, rule: StoppingRule
) -> Comparison:
    rng = np.random.default_rng([seed, 0])
    with (
        open_runtime(device.runtime, threads=device.threads, seed=seed) as runtime,
        _no_collection(),
    ):
        first, second = (
            _timed(runtime.load(runtime.build(file), device.batch))
            for file in (candidate, baseline)
        )
        return compare(first, second, rng, rule)


def _timed(model: LoadedModel) -> Timed:
    def once() -> float:
        start = time.perf_counter_ns()
        model.run()
        return (time.perf_counter_ns() - start) / 1e6

    return once


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the times."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _readings(
    times_ms: Times,
    device: DeviceSpec,
    p50_ratio: Interval,
    p95_ratio: Interval,
    warnings: tuple[str, ...],
) -> tuple[Reading, ...]:
    p50, p95 = quantile(times_ms, 0.5), quantile(times_ms, 0.95)
    per_second = inverse(Interval(value=p50.value / 1e3, low=p50.low / 1e3, high=p50.high / 1e3))

    def reading(metric: str, statistic: str, value: Interval, ratio: Interval) -> Reading:
        return Reading(
            metric=metric,
            value=value.value,
            low=value.low,
            high=value.high,
            n=len(times_ms),
            device=device.name,
            statistic=statistic,
            ratio=ratio,
            warning="; ".join(warnings) or None,
        )

    return (
        reading("latency_ms", "p50", p50, p50_ratio),
        reading("latency_ms", "p95", p95, p95_ratio),
        reading("throughput", "p50", per_second, inverse(p50_ratio)),
    )
