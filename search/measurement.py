"""Measured values and what came of a trial; never NaN, never a bare None."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from search.errors import ProblemInvalid
from search.metric import METRICS

Split = Literal["search", "test"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval; `low <= value <= high`, all finite."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.value, self.low, self.high)):
            raise ProblemInvalid(f"Interval {self.value} [{self.low}, {self.high}] is not finite")
        if not self.low <= self.value <= self.high:
            raise ProblemInvalid(f"Value {self.value} is outside [{self.low}, {self.high}]")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A measured value with spread, count, unit and device.

    Attributes:
        metric: Name in `METRICS`.
        value: In the metric's unit.
        low: Lower end of the 95 % interval; equals `value` for exact quantities.
        high: Upper end.
        n: Number of inputs scored or runs timed; 1 for exact quantities.
        device: Where it was timed; None for metrics that are not timed. A timed metric without
            a device cannot be constructed.
        statistic: One of `STATISTICS` for timed metrics, else None.
        split: Which data an accuracy is of: `search` (search-validation) or `test` (held out).
        ratio: Value over the dense baseline's, measured beside it; None where that has no sense.
        estimated: True when predicted, never on the front.
        warning: Why the value should be doubted, in words; None when it need not.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int = 1
    device: str | None = None
    statistic: str | None = None
    split: Split | None = None
    ratio: Interval | None = None
    estimated: bool = False
    warning: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ProblemInvalid(f"Unknown metric {self.metric!r}; known: {', '.join(METRICS)}")
        Interval(value=self.value, low=self.low, high=self.high)
        if METRICS[self.metric].timed and not (self.device and self.statistic):
            raise ProblemInvalid(f"A reading of {self.metric} needs a device and a statistic")

    @staticmethod
    def exact(metric: str, value: float, baseline: float | None = None) -> Reading:
        """Return a reading without spread; its ratio is exact too where a baseline is given."""
        ratio = None
        if baseline:
            share = value / baseline
            ratio = Interval(value=share, low=share, high=share)
        return Reading(metric=metric, value=value, low=value, high=value, ratio=ratio)

    @property
    def unit(self) -> str:
        """The metric's unit."""
        return METRICS[self.metric].unit

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, with the unit."""
        return {**dataclasses.asdict(self), "unit": self.unit}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Reading:
        """Rebuild a reading from `to_json`."""
        fields = {key: value for key, value in data.items() if key != "unit"}
        if fields.get("ratio"):
            fields["ratio"] = Interval(**fields["ratio"])
        return Reading(**fields)


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """All readings of one evaluation; at most one per (metric, device, statistic)."""

    readings: tuple[Reading, ...]

    def __post_init__(self) -> None:
        keys = [(r.metric, r.device, r.statistic) for r in self.readings]
        if len(set(keys)) != len(keys):
            raise ProblemInvalid(
                f"Measurement has two readings of one key: {sorted(map(str, keys))}"
            )

    def get(
        self, metric: str, device: str | None = None, statistic: str | None = None
    ) -> Reading | None:
        """Return the reading, or None where it was not taken."""
        key = (metric, device, statistic)
        return next((r for r in self.readings if (r.metric, r.device, r.statistic) == key), None)

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain JSON data."""
        return [reading.to_json() for reading in self.readings]

    @staticmethod
    def from_json(data: list[dict[str, Any]]) -> Measurement:
        """Rebuild a measurement from `to_json`."""
        return Measurement(tuple(Reading.from_json(item) for item in data))


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """The trial was evaluated. Violated constraints are data here, not failures.

    Attributes:
        measurement: Its readings.
        found: What else it found out, JSON values: of preparations, for the agent that ordered
            them.
    """

    measurement: Measurement
    found: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Infeasible:
    """The plan cannot be evaluated by nature (certificate refused, export impossible).

    Attributes:
        reason: Why.
        foretold: It was not tried, because a bound is foretold to be missed: that says nothing of
            its accuracy, which for a slow plan is often good.
    """

    reason: str
    foretold: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The evaluation broke; `retryable` when another attempt may succeed."""

    error: str
    retryable: bool = False


Outcome = Measured | Infeasible | Failed


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as tagged plain JSON data."""
    match outcome:
        case Measured(measurement, found):
            known = {"found": dict(found)} if found else {}
            return {"kind": "measured", "readings": measurement.to_json(), **known}
        case Infeasible(reason, foretold):
            marked = {"foretold": True} if foretold else {}
            return {"kind": "infeasible", "reason": reason, **marked}
        case Failed(error, retryable):
            return {"kind": "failed", "error": error, "retryable": retryable}


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """Rebuild an outcome from `outcome_to_json`."""
    match data["kind"]:
        case "measured":
            return Measured(Measurement.from_json(data["readings"]), data.get("found", {}))
        case "infeasible":
            return Infeasible(data["reason"], data.get("foretold", False))
        case "failed":
            return Failed(data["error"], data["retryable"])
        case kind:
            raise ProblemInvalid(f"Unknown outcome kind {kind!r}")
