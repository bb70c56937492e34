"""What came of timing a file beside the dense baseline: raw times, and the readings they give."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.device import DeviceSpec
from search.measurement import Interval, Reading
from workers.meters.quantiles import Times, flat, quantile_ratios, quantiles_of_blocks
from workers.meters.stopwatch import Comparison, RegimeTimes, inverse

EXACTLY_ONE = Interval(value=1.0, low=1.0, high=1.0)

TAILS = {"p95": 0.95, "p99": 0.99}
"""Statistics beside the median."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatencyResult:
    """Readings with the times behind them.

    Attributes:
        device: Where.
        readings: latency_ms p50, p95 and p99, throughput p50, and latency_hot_ms p50 where bursts
            were timed; each with its ratio to the baseline.
        interleaved: Raw times of the two in turns.
        hot: Raw times of bursts; None where there was too little time for them.
        ratio: Candidate's time over the baseline's as measured, interleaved; of a baseline
            against itself this is the A/A check.
        warnings: Why the readings should be doubted; also in each reading.
        seconds: Wall time of it all, loading included.
    """

    device: DeviceSpec
    readings: tuple[Reading, ...]
    interleaved: RegimeTimes
    hot: RegimeTimes | None
    ratio: Interval
    warnings: tuple[str, ...]
    seconds: float

    @property
    def candidate_ms(self) -> Times:
        """The candidate's interleaved times of the blocks that count, in order."""
        return flat(self.interleaved.candidate_ms[self.interleaved.calm])

    @property
    def baseline_ms(self) -> Times:
        """The baseline's times in the same rounds."""
        return flat(self.interleaved.baseline_ms[self.interleaved.calm])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the raw times, blocks x rounds in milliseconds, NaN where a block was shorter."""
        found: dict[str, NDArray[Any]] = {
            "candidate_ms": self.interleaved.candidate_ms,
            "baseline_ms": self.interleaved.baseline_ms,
        }
        if self.hot is not None:
            found["hot_candidate_ms"] = self.hot.candidate_ms
            found["hot_baseline_ms"] = self.hot.baseline_ms
        return found

    def to_npz(self) -> bytes:
        """Return the raw times as a NumPy archive, keys as in `arrays`."""
        return _npz(self.arrays())


def times_npz(results: Iterable[LatencyResult]) -> bytes:
    """Return the raw times of several devices in one archive, keys `DEVICE/ARRAY`."""
    return _npz(
        {
            f"{result.device.name}/{name}": array
            for result in results
            for name, array in result.arrays().items()
        }
    )


def extended(archive: bytes, device: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an archive of `times_npz` with the raw times of one more device."""
    with np.load(io.BytesIO(archive), allow_pickle=False) as kept:
        found = {name: kept[name] for name in kept.files}
    return _npz(found | {f"{device}/{name}": array for name, array in arrays.items()})


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def result_of(
    seen: Comparison, device: DeviceSpec, *, same: bool, seed: int, seconds: float
) -> LatencyResult:
    """Return the readings of a comparison.

    Args:
        seen: What the stopwatch saw.
        device: Where.
        same: Whether both were the baseline: the readings are of both copies' times together,
            their ratio is 1 by definition, and being told apart is a warning.
        seed: Of the bootstrap.
        seconds: Wall time.
    """
    warnings, ratio = seen.warnings, seen.ratio
    if same and not ratio.low <= 1.0 <= ratio.high:
        told_apart = (
            f"the baseline was told apart from itself, as happens to 1 comparison in 20 by chance: "
            f"ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        )
        warnings = (*warnings, told_apart)
    return LatencyResult(
        device=device,
        readings=_readings(seen, device, same, warnings, np.random.default_rng([seed, 1])),
        interleaved=seen.interleaved,
        hot=seen.hot,
        ratio=ratio,
        warnings=warnings,
        seconds=seconds,
    )


def _readings(
    seen: Comparison,
    device: DeviceSpec,
    same: bool,
    warnings: tuple[str, ...],
    rng: np.random.Generator,
) -> tuple[Reading, ...]:
    def reading(metric: str, statistic: str, value: Interval, ratio: Interval, n: int) -> Reading:
        return Reading(
            metric=metric,
            value=value.value,
            low=value.low,
            high=value.high,
            n=n,
            device=device.name,
            statistic=statistic,
            ratio=EXACTLY_ONE if same else ratio,
            warning="; ".join(warnings) or None,
        )

    cold = seen.interleaved
    times = _times(cold, same)
    n = len(flat(times))
    p50, *values = quantiles_of_blocks(times, (0.5, *TAILS.values()), rng)
    calm = (cold.candidate_ms[cold.calm], cold.baseline_ms[cold.calm])
    ratios = quantile_ratios(*calm, tuple(TAILS.values()), rng)
    tails = [
        reading("latency_ms", name, value, ratio, n)
        for name, value, ratio in zip(TAILS, values, ratios, strict=True)
    ]
    value, low, high = (ms / (1e3 * device.batch) for ms in (p50.value, p50.low, p50.high))
    per_input_s = Interval(value=value, low=low, high=high)
    found = (
        reading("latency_ms", "p50", p50, cold.ratio, n),
        *tails,
        reading("throughput", "p50", inverse(per_input_s), inverse(cold.ratio), n),
    )
    if seen.hot is None:
        return found
    times = _times(seen.hot, same)
    (hot,) = quantiles_of_blocks(times, (0.5,), rng)
    return (*found, reading("latency_hot_ms", "p50", hot, seen.hot.ratio, len(flat(times))))


def _times(regime: RegimeTimes, same: bool) -> Times:
    """Return the candidate's times of the blocks that count, or both copies' of one model."""
    if not same:
        return regime.candidate_ms[regime.calm]
    return np.concatenate([regime.candidate_ms, regime.baseline_ms], axis=1)[regime.calm]
