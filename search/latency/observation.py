"""One reading of latency as the model takes it in, and readings of the same network as one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from compression.plan import Plan
from search.measurement import Interval, Measured
from search.trial import Trial


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured ratio.

    Attributes:
        plan: What was timed.
        ratio: Latency over the dense network's, timed beside it; above 0.
        dense_ms: The dense network's latency at that time: it tells how loaded the machine was.
    """

    plan: Plan
    ratio: Interval
    dense_ms: float


def observed(trial: Trial, device: str, statistic: str) -> Observation | None:
    """Return what a trial tells of latency on a device; None where it tells nothing.

    Estimates tell nothing, and neither does a trial on a base, whose plan is not the whole story.
    """
    if trial.base is not None or not isinstance(trial.outcome, Measured):
        return None
    reading = trial.outcome.measurement.get("latency_ms", device, statistic)
    if reading is None or reading.estimated or reading.ratio is None or reading.ratio.low <= 0:
        return None
    dense_ms = reading.value / reading.ratio.value
    return Observation(plan=trial.plan, ratio=reading.ratio, dense_ms=dense_ms)


def pooled(observations: Sequence[Observation]) -> Interval:
    """Return one ratio for readings of the same network: their geometric mean.

    The interval spans those of all of them: they differ by more than each one's own interval says,
    because the load of the machine differs.
    """
    logs = [math.log(o.ratio.value) for o in observations]
    low = min(o.ratio.low for o in observations)
    high = max(o.ratio.high for o in observations)
    value = min(max(math.exp(sum(logs) / len(logs)), low), high)
    return Interval(value=value, low=low, high=high)
