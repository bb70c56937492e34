"""How the trials of a job stand against its bounds, rung by rung; arithmetic on stored readings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compression.methods import resolve_space
from compression.surveyed import Survey
from search.errors import ProblemInvalid
from search.finalists import before_recovery
from search.front import ParetoFront, nearest
from search.measurement import Measured, Measurement, Reading
from search.metric import ACCURACIES
from search.objective import Constraint
from search.problem import Problem
from search.trial import BASELINE_AGENT, SEARCH_FIDELITIES, Fidelity, Trial
from workers.job import JobSpec


def named_readings(
    readings: Sequence[Reading], main_device: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return readings by metric name, as JSON.

    A time stands under its plain name for the job's main device at p50, and under
    `metric@device:statistic` otherwise. Where that one was not taken, the first one taken has
    the plain name.

    Args:
        readings: In any order.
        main_device: The job's first device; None takes the first reading's.
    """
    by_key: dict[str, dict[str, Any]] = {}
    plain = sorted(
        readings,
        key=lambda r: (main_device not in (None, r.device), r.statistic not in (None, "p50")),
    )
    for reading in plain:
        key = reading.metric
        if key in by_key:
            key = f"{reading.metric}@{reading.device}:{reading.statistic}"
        by_key[key] = reading.to_json()
    return by_key


def main_device(spec: JobSpec) -> str | None:
    """Return the device that the job names first; None where it names none."""
    named = [o.device for o in spec.objectives] + [c.device for c in spec.constraints]
    return next((device for device in named if device is not None), None)


def baseline_of(trials: Sequence[Trial], fidelity: Fidelity) -> Measurement | None:
    """Return the dense model's measurement at a rung; None before it was taken."""
    for trial in trials:
        mine = trial.agent == BASELINE_AGENT and trial.fidelity is fidelity
        if mine and isinstance(trial.outcome, Measured):
            return trial.outcome.measurement
    return None


def problem_at(spec: JobSpec, survey: Survey, baseline: Measurement, fidelity: Fidelity) -> Problem:
    """Return the job as it is judged at a rung; before recovery, accuracy floors do not bind."""
    problem = Problem(
        space=resolve_space(survey.sites, spec.methods, survey.costs),
        costs=survey.costs,
        objectives=spec.objectives,
        constraints=spec.constraints,
        baseline=baseline,
        budget_trials=spec.budget.trials,
        seed=spec.seed,
    )
    recovers = fidelity in SEARCH_FIDELITIES and spec.recovery.epochs > 0
    return before_recovery(problem) if recovers else problem


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A trial against the job's bounds.

    Attributes:
        feasible: Whether it holds those that count at its rung; None where that is not known.
        violations: By constraint; `<= 0` holds. Bounds without a reading are left out.
    """

    feasible: bool | None
    violations: Mapping[str, float]


def standing(spec: JobSpec, trial: Trial, baseline: Measurement | None) -> Standing:
    """Return how a trial stands against the job's bounds.

    Args:
        spec: The job.
        trial: Any of its trials.
        baseline: The dense model at the same rung.
    """
    if not isinstance(trial.outcome, Measured) or baseline is None:
        return Standing(feasible=None, violations={})
    recovers = trial.fidelity in SEARCH_FIDELITIES and spec.recovery.epochs > 0
    violations: dict[str, float] = {}
    feasible: bool | None = True
    for constraint in spec.constraints:
        value = _violation(constraint, trial.outcome.measurement, baseline)
        if value is not None:
            violations[constraint.key] = max(value, violations.get(constraint.key, value))
        if recovers and constraint.metric in ACCURACIES:
            continue
        if value is None:
            feasible = None if feasible else False
        elif value > 0:
            feasible = False
    return Standing(feasible=feasible, violations=violations)


def _violation(
    constraint: Constraint, measurement: Measurement, baseline: Measurement
) -> float | None:
    try:
        return constraint.violation(measurement, baseline)
    except ProblemInvalid:
        return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionalFront:
    """The front of a running job so far, from search trials alone.

    Attributes:
        baseline: The dense model at the search's rung; None before it was measured.
        members: Feasible and undominated.
        nearest: Those that miss the bounds least, where there is no member.
    """

    baseline: Measurement | None
    members: tuple[Trial, ...] = ()
    nearest: tuple[Trial, ...] = ()


def provisional_front(spec: JobSpec, survey: Survey, trials: Sequence[Trial]) -> ProvisionalFront:
    """Return the front of the search trials so far."""
    baseline = baseline_of(trials, Fidelity.PROXY)
    if baseline is None:
        return ProvisionalFront(baseline=None)
    problem = problem_at(spec, survey, baseline, Fidelity.PROXY)
    searched = [t for t in trials if t.fidelity in SEARCH_FIDELITIES and t.agent != BASELINE_AGENT]
    front = ParetoFront.of(problem, searched)
    near = () if front.members else tuple(nearest(problem, searched))
    return ProvisionalFront(baseline=baseline, members=front.members, nearest=near)
