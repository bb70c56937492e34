"""The shape of a dry run."""

from __future__ import annotations

from typing import Any, Literal

from service.api.schemas.strict import Answer
from service.api.schemas.trials import ReadingsOut


class KnobOut(Answer):
    """One variable of the search; `choices` in the order of the search's coordinates."""

    site: str
    field: str
    choices: list[int | str]
    ordered: bool


class FrozenOut(Answer):
    """A site that takes no decision in this job, and why."""

    site: str
    reason: str


class SpaceOut(Answer):
    """The admissible plans. `size` is a decimal number as text: it may exceed any integer type."""

    size: str
    knobs: list[KnobOut]
    frozen: list[FrozenOut]


class RegionOut(Answer):
    """What the space reaches in one quantity; `exact` is False for estimates of bytes."""

    min: int
    max: int
    exact: bool


class BoundOut(Answer):
    """What is known of one bound before any trial.

    Attributes:
        key: The bounded quantity.
        constraint: The bound with every default filled in.
        limit: In `unit`; None while its baseline is not measured.
        unit: The metric's.
        reachable: Whether some plan meets it; `unknown` before measuring.
        reason: Why.
        warning: An estimate that speaks against it.
    """

    key: str
    constraint: dict[str, Any]
    limit: float | None
    unit: str
    reachable: Literal["yes", "no", "unknown"]
    reason: str
    warning: str | None


class ForecastOut(Answer):
    """Seconds the job is expected to take, with the arithmetic; None where nothing is stored.

    Attributes:
        per_trial_s: One search trial that is carried out: remembered and spared ones take no time.
        search_s: The search phase, within the budget.
        finalists_s: Recovery of the finalists, at most.
        total_s: Both.
        trials: Search trials that fit.
        source: Where the seconds of a search trial come from: the mean of earlier trials,
            arithmetic on the model's scan, or nowhere, so that only the budget bounds the job.
        earlier_trials: How many it is the mean of.
        arithmetic: How the figures came about, line by line.
    """

    per_trial_s: float | None
    search_s: float | None
    finalists_s: float | None
    total_s: float | None
    trials: int | None
    source: Literal["earlier_trials", "arithmetic", "budget"]
    earlier_trials: int
    arithmetic: list[str]


class PreviewOut(Answer):
    """A job before it runs; nothing is stored.

    Attributes:
        spec: The job with every default filled in and `auto` resolved.
        space: The admissible plans.
        baseline: The dense model, as far as it is known.
        reachable: What the space reaches, by metric.
        constraints: One verdict per bound, in order.
        would_be_accepted: Whether posting it would start it.
        warnings: Estimates that speak against it.
        forecast: What it takes.
    """

    spec: dict[str, Any]
    space: SpaceOut
    baseline: ReadingsOut
    reachable: dict[str, RegionOut]
    constraints: list[BoundOut]
    would_be_accepted: bool
    warnings: list[str]
    forecast: ForecastOut
