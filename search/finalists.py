"""Which trials of the search are recovered in full, and what to say when none fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from search.front import Losses, hypervolume
from search.measurement import Measured, Measurement
from search.metric import ACCURACIES
from search.objective import Constraint, Objective
from search.problem import Problem
from search.trial import BASELINE_AGENT, Fidelity, Trial

COST_SLACK = 0.05
"""Relative difference up to which two trials cost alike: timings of one network differ as much."""

LEAST_PLANS = 3
"""Below, a rank correlation can only be -1, 0 or 1, and says nothing."""

PAIRS = {
    "proxy_short": (Fidelity.PROXY, Fidelity.SHORT),
    "proxy_full": (Fidelity.PROXY, Fidelity.FULL),
    "short_full": (Fidelity.SHORT, Fidelity.FULL),
}
"""Rungs whose orders are compared."""


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
    # A plan that was scored at two rungs is recovered once.
    measured = list({(t.plan.digest, t.base): t for t in reversed(measured)}.values())[::-1]
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


def compared_accuracy(
    objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> str | None:
    """Return the accuracy that ranks trials of a job: its first; None where it names none."""
    named = [o.metric for o in objectives] + [c.metric for c in constraints]
    return next((metric for metric in named if metric in ACCURACIES), None)


def rivals(problem: Problem, trials: Sequence[Trial]) -> list[frozenset[int]]:
    """Return for each trial the others that may outrun it by accuracy alone.

    Training changes accuracy and nothing else. So a trial that is less accurate than another one
    on the way may be given up only where that one is no worse in anything else: it violates the
    bounds no more, and costs the same or less, up to `COST_SLACK`, in every objective that is no
    accuracy. What nobody rivals is never given up.

    Args:
        problem: The problem the trials were compared in.
        trials: Measured ones.

    Returns:
        Positions in `trials`.
    """
    costs = [
        [o.loss(_readings(t)) for o in problem.objectives if o.metric not in ACCURACIES]
        for t in trials
    ]
    misses = [problem.total_violation(_readings(t)) for t in trials]
    return [
        frozenset(
            other
            for other in range(len(trials))
            if other != one
            and misses[other] <= misses[one]
            and all(
                theirs <= own + COST_SLACK * abs(own)
                for theirs, own in zip(costs[other], costs[one], strict=True)
            )
        )
        for one in range(len(trials))
    ]


def rank_correlations(metric: str, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Say how far the rungs agree on the order of plans, by pair of rungs.

    Args:
        metric: Which reading ranks.
        trials: Of a job, any fidelity and state; the dense model's do not count.

    Returns:
        For every pair of `PAIRS` with a plan that was measured at both rungs: `rho`, and `n`, the
        number of such plans. `rho` is None below `LEAST_PLANS` and where one rung scores all
        alike.
    """
    scores: dict[Fidelity, dict[tuple[str, str | None], float]] = {}
    for trial in trials:
        if trial.agent == BASELINE_AGENT or not isinstance(trial.outcome, Measured):
            continue
        reading = trial.outcome.measurement.get(metric)
        if reading is not None:
            scores.setdefault(trial.fidelity, {})[trial.plan.digest, trial.base] = reading.value
    found: dict[str, dict[str, Any]] = {}
    for name, (lower, upper) in PAIRS.items():
        low, high = scores.get(lower, {}), scores.get(upper, {})
        both = sorted(low.keys() & high.keys(), key=str)
        if both:
            rho = spearman([low[key] for key in both], [high[key] for key in both])
            found[name] = {"rho": rho if len(both) >= LEAST_PLANS else None, "n": len(both)}
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation (1904); equal values share their mean rank.

    Returns:
        In [-1, 1]; None where the values of one side are all equal.
    """
    middle = (len(first) - 1) / 2
    one = [rank - middle for rank in _ranks(first)]
    two = [rank - middle for rank in _ranks(second)]
    scale = math.sqrt(sum(a * a for a in one) * sum(b * b for b in two))
    if scale == 0.0:
        return None
    rho = sum(a * b for a, b in zip(one, two, strict=True)) / scale
    return max(-1.0, min(1.0, rho))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 0, ties shared."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


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
