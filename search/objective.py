"""What is wanted and what is required."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from search.errors import ProblemInvalid
from search.measurement import Measurement, Reading
from search.metric import METRICS, STATISTICS, Direction

Relation = Literal["baseline", "baseline_difference"]


def _check_metric(metric: str, device: str | None, statistic: str | None) -> None:
    if metric not in METRICS:
        raise ProblemInvalid(f"Unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if METRICS[metric].timed:
        if device is None:
            raise ProblemInvalid(f"Metric {metric!r} is timed: name the device it is meant for")
        if statistic not in STATISTICS:
            raise ProblemInvalid(
                f"Metric {metric!r}: statistic is {statistic!r}; use one of {', '.join(STATISTICS)}"
            )
    elif device is not None or statistic is not None:
        raise ProblemInvalid(f"Metric {metric!r} is not timed: it takes no device, no statistic")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A metric to push as far as it goes.

    Attributes:
        metric: Name in `METRICS`.
        direction: Which way is wanted.
        device: For timed metrics.
        statistic: For timed metrics, one of `STATISTICS`.
    """

    metric: str
    direction: Direction
    device: str | None = None
    statistic: str | None = None

    def __post_init__(self) -> None:
        _check_metric(self.metric, self.device, self.statistic)

    def reading(self, measurement: Measurement) -> Reading | None:
        """Return the reading that this objective is about."""
        return measurement.get(self.metric, self.device, self.statistic)

    def loss(self, measurement: Measurement) -> float:
        """Return the value to minimise (negated when the direction is maximize).

        Raises:
            ProblemInvalid: The measurement lacks the reading.
        """
        reading = self.reading(measurement)
        if reading is None:
            raise ProblemInvalid(f"No reading of {self.metric} (device {self.device}) was taken")
        return reading.value if self.direction == "minimize" else -reading.value

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A bound on a metric of the deployed model. `violation <= 0` is feasible.

    Exactly one of `at_most` and `at_least` is given. With `relative_to="baseline"` the bound is a
    multiple of the dense baseline's value and the ratio measured beside it decides; with
    `"baseline_difference"` it is added to the baseline's value.

    Attributes:
        metric: Name in `METRICS`.
        at_most: Upper bound.
        at_least: Lower bound.
        relative_to: How the bound refers to the baseline; None for an absolute bound.
        device: For timed metrics.
        statistic: For timed metrics, one of `STATISTICS`.
    """

    metric: str
    at_most: float | None = None
    at_least: float | None = None
    relative_to: Relation | None = None
    device: str | None = None
    statistic: str | None = None

    def __post_init__(self) -> None:
        _check_metric(self.metric, self.device, self.statistic)
        if (self.at_most is None) == (self.at_least is None):
            raise ProblemInvalid(
                f"Constraint on {self.metric!r} needs exactly one of at_most and at_least; "
                f"got at_most={self.at_most}, at_least={self.at_least}"
            )

    @property
    def key(self) -> str:
        """A stable name of the bounded quantity, for messages and tables."""
        place = f"@{self.device}:{self.statistic}" if self.device else ""
        return f"{self.metric}{place}"

    def reading(self, measurement: Measurement) -> Reading | None:
        """Return the reading that this constraint bounds."""
        return measurement.get(self.metric, self.device, self.statistic)

    def limit(self, baseline: Measurement) -> float:
        """Return the bound in the metric's unit.

        Raises:
            ProblemInvalid: The bound is relative and the baseline was not measured.
        """
        bound = self.at_most if self.at_most is not None else self.at_least
        assert bound is not None
        if self.relative_to is None:
            return bound
        reference = self.reading(baseline)
        if reference is None:
            raise ProblemInvalid(f"The baseline of {self.key} was not measured")
        if self.relative_to == "baseline":
            return bound * reference.value
        return reference.value + bound

    def violation(self, measurement: Measurement, baseline: Measurement) -> float:
        """Return by how much the bound is missed, relative to its size; `<= 0` is feasible.

        Raises:
            ProblemInvalid: The reading or its baseline is missing.
        """
        reading = self.reading(measurement)
        if reading is None:
            raise ProblemInvalid(f"No reading of {self.key} was taken")
        if self.relative_to == "baseline" and reading.ratio is not None:
            bound = self.at_most if self.at_most is not None else self.at_least
            assert bound is not None
            value, limit = reading.ratio.value, bound
        else:
            value, limit = reading.value, self.limit(baseline)
        scale = abs(limit) or 1.0
        return (value - limit) / scale if self.at_most is not None else (limit - value) / scale

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return dataclasses.asdict(self)


def objective_from_json(data: Mapping[str, Any]) -> Objective:
    """Rebuild an objective from its JSON form."""
    return Objective(**data)


def constraint_from_json(data: Mapping[str, Any]) -> Constraint:
    """Rebuild a constraint from its JSON form."""
    return Constraint(**data)


def feasible(
    measurement: Measurement, baseline: Measurement, constraints: tuple[Constraint, ...]
) -> bool:
    """Whether every constraint holds."""
    return all(c.violation(measurement, baseline) <= 0 for c in constraints)
