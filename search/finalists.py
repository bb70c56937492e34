"""Which trials of the search are recovered in full, and what to say when none fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from search.front import Losses, hypervolume
from search.measurement import Measured, Measurement
from search.metric import ACCURACIES
from search.objective import Constraint, Objective
from search.problem import Problem
from search.trial import Trial


def before_recovery(problem: Problem) -> Problem:
    """Return the problem that trials without recovery are compared in.

    An accuracy floor bounds the deployed model. Scores taken before recovery lie far below it
    everywhere, so the floor would only say "infeasible": here the accuracy it names becomes an
    objective instead, and the floor decides from the full rung on.
    """
    floors = [c for c in problem.constraints if c.metric in ACCURACIES]
    wanted = {objective.metric for objective in problem.objectives}
    extra = dict.fromkeys(c.metric for c in floors if c.metric not in wanted)
    return dataclasses.replace(
        problem,
        constraints=tuple(c for c in problem.constraints if c not in floors),
        objectives=(
            *problem.objectives,
            *(Objective(metric=metric, direction="maximize") for metric in extra),
        ),
    )


def choose_finalists(
    problem: Problem, trials: Sequence[Trial], count: int, exclude: frozenset[str] = frozenset()
) -> list[Trial]:
    """Choose trials for full recovery: the best first, then what adds most to the front.

    Feasible trials come before infeasible ones, which are ordered by total violation and fill up
    only when too few are feasible. Deterministic.

    Args:
        problem: The problem the trials were compared in.
        trials: Finished ones, any state.
        count: How many at most.
        exclude: Plan digests that had their chance.
    """
    measured = [
        t for t in trials if isinstance(t.outcome, Measured) and t.plan.digest not in exclude
    ]
    measured.sort(key=problem.rank_key)
    feasible = [t for t in measured if problem.feasible(_readings(t))]
    chosen = feasible[:1]
    rest = feasible[1:]
    scaled = _unit_losses(problem, feasible)
    reference = (1.1,) * len(problem.objectives)
    while rest and len(chosen) < count:
        held = [scaled[t.id] for t in chosen]
        base = hypervolume(held, reference)
        gains = [hypervolume([*held, scaled[t.id]], reference) - base for t in rest]
        best = max(range(len(rest)), key=lambda i: (gains[i], -i))
        chosen.append(rest.pop(best))
    near = [t for t in measured if not problem.feasible(_readings(t))]
    return [*chosen, *near][:count]


def _readings(trial: Trial) -> Measurement:
    assert isinstance(trial.outcome, Measured)
    return trial.outcome.measurement


def _unit_losses(problem: Problem, trials: Sequence[Trial]) -> dict[str, Losses]:
    raw = {t.id: problem.losses(_readings(t)) for t in trials}
    if not raw:
        return {}
    columns = list(zip(*raw.values(), strict=True))
    spans = [(min(c), (max(c) - min(c)) or 1.0) for c in columns]
    return {
        key: tuple((v - low) / span for v, (low, span) in zip(losses, spans, strict=True))
        for key, losses in raw.items()
    }


def price_of_relaxing(problem: Problem, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Say, for each bound that is in the way, what value would have to be allowed.

    For a constraint, the trials that hold all *other* bounds are looked at: the smallest miss
    among them is what relaxing this one alone would buy. Constraints that some such trial meets
    with none missing are not in the way. Ordered by the price, cheapest first.
    """
    measured = [t for t in trials if isinstance(t.outcome, Measured)]
    rows = []
    for index, constraint in enumerate(problem.constraints):
        best: tuple[float, Trial] | None = None
        for trial in measured:
            violations = problem.violations(_readings(trial))
            others = [v for i, v in enumerate(violations) if i != index]
            if all(v <= 0 for v in others) and (best is None or violations[index] < best[0]):
                best = (violations[index], trial)
        if best is not None and best[0] > 0:
            rows.append(_price(problem, constraint, best[0], best[1]))
    if not rows:
        rows = [
            {"constraint": c.key, "limit": c.limit(problem.baseline), "reachable": None}
            for i, c in enumerate(problem.constraints)
            if all(problem.violations(_readings(t))[i] > 0 for t in measured)
        ]
    return sorted(rows, key=lambda row: float(row.get("relative_price", 0.0)))


def _price(
    problem: Problem, constraint: Constraint, violation: float, trial: Trial
) -> dict[str, Any]:
    reading = constraint.reading(_readings(trial))
    assert reading is not None
    return {
        "constraint": constraint.key,
        "limit": constraint.limit(problem.baseline),
        "reachable": reading.value,
        "relative_price": violation,
        "trial_id": trial.id,
    }
