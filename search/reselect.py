"""The same trials under other bounds: what is already good enough, and is more searching worth it?

Stored trials are measurements; which of them a bound allows is arithmetic. A surrogate fitted to
them says how likely it is that some plan not yet tried keeps the new bounds and is better.

Reference:
    Joint posterior draws over a candidate set, as in max-value and Thompson methods (Z. Wang, S.
    Jegelka: Max-value Entropy Search, ICML 2017, section 3.1): each draw has its own best plan.

Deviations:
    * The largest of many uncertain values is large: far from what was tried, the chance errs on
      the side of searching on. The expected gain, beside it, says how much there is to be had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from compression.errors import PlanInvalid
from search.arithmetic import Floats, as_points
from search.errors import ProblemInvalid
from search.front import dominates
from search.history import Told
from search.measurement import Measured
from search.one_thread import one_thread
from search.problem import Problem, best_first
from search.repair import Repair, as_point
from search.trial import Trial

DRAWS = 64
"""Joint draws of what untried plans would measure."""

FEWEST = 3
"""Measured trials below which nothing can be said."""

CENTRES = 4
"""Best stored plans whose surroundings are candidates."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reselection:
    """What stored trials say of other bounds.

    Attributes:
        feasible: Stored trials that keep the bounds, best first.
        nearest: The stored trial that misses them least, where none keeps them.
        chance_of_better: Probability that an untried plan keeps the bounds and is better by at
            least the gain asked for; 1 where too little is known.
        expected_gain: Of the main objective, in its unit; 0 where nothing is feasible yet.
        unmeasured: Stored trials that lack a reading the new problem needs.
        worthwhile: Whether a new search is likely to pay.
    """

    feasible: tuple[Trial, ...]
    nearest: Trial | None
    chance_of_better: float
    expected_gain: float
    unmeasured: int
    worthwhile: bool


def reselect(
    problem: Problem,
    trials: Sequence[Trial],
    *,
    least_gain: float = 0.02,
    least_chance: float = 0.5,
    candidates: int = 300,
) -> Reselection:
    """Judge stored trials under the objectives and bounds of `problem`.

    Args:
        problem: With the new bounds; the space, costs and baseline of the trials. Bounds on
            accuracies mean those of the given trials: pass `before_recovery` of it for rungs
            without recovery.
        trials: Finished, of one fidelity and one base. Plans outside the space are left out.
        least_gain: What counts as better, as a share of the range of the losses measured.
        least_chance: From which chance on a search is worthwhile.
        candidates: Random untried plans that are considered.
    """
    known, unmeasured = _known(problem, trials)
    ordered = best_first(problem, [told.trial for told in known])
    measured = [t for t in ordered if isinstance(t.outcome, Measured)]
    feasible = tuple(t for t in measured if problem.feasible(_outcome(t).measurement))
    if len(measured) < FEWEST:
        chance, gain = 1.0, 0.0
    else:
        chance, gain = _prospect(problem, known, feasible, least_gain, candidates)
    return Reselection(
        feasible=feasible,
        nearest=None if feasible or not measured else measured[0],
        chance_of_better=chance,
        expected_gain=gain,
        unmeasured=unmeasured,
        worthwhile=chance >= least_chance,
    )


def _outcome(trial: Trial) -> Measured:
    assert isinstance(trial.outcome, Measured)
    return trial.outcome


def _known(problem: Problem, trials: Sequence[Trial]) -> tuple[list[Told], int]:
    """Return the trials of the space in order of proposal, and how many lack a reading."""
    known, unmeasured = [], 0
    for trial in sorted(trials, key=lambda t: (t.number, t.id)):
        try:
            told = Told(problem.space.encode(trial.plan), trial)
        except PlanInvalid:
            continue
        if told.measurement is not None:
            try:
                problem.losses(told.measurement)
                problem.violations(told.measurement)
            except ProblemInvalid:
                unmeasured += 1
                continue
        known.append(told)
    return known, unmeasured


def _prospect(
    problem: Problem,
    known: Sequence[Told],
    feasible: Sequence[Trial],
    least_gain: float,
    candidates: int,
) -> tuple[float, float]:
    """Return the chance that an untried plan is better, and the expected gain."""
    from search.surrogate.beliefs import believe
    from search.surrogate.candidates import Candidates
    from search.surrogate.features import Features
    from search.surrogate.observations import observe

    rng = np.random.default_rng([problem.seed % 2**32, len(known)])
    seen = observe(problem, known)
    repair = Repair(problem)
    source = Candidates(problem, repair, candidates)
    exact = np.zeros(len(repair.arithmetic.constraints))
    excess = np.maximum(seen.violations, 0.0).sum(axis=1)
    order = np.lexsort((seen.losses[:, 0], excess))[:CENTRES]
    widest = source.counts - 1
    near = [source.around(as_point(row), exact, widest, rng) for row in seen.points[order]]
    pool = np.vstack([source.wide(exact, widest, rng), *near])
    pool = source.admissible(pool, exact, widest, {told.point for told in known})
    if not len(pool):
        return 0.0, 0.0
    if len(pool) > 2 * candidates:
        pool = as_points(rng.permutation(pool)[: 2 * candidates], pool.shape[1])
    with one_thread():
        beliefs = believe(problem, Features(problem), seen.losses, seen, seen)
        draws = beliefs.sample(pool, rng, DRAWS)
    m = len(problem.objectives)
    limits = np.array(beliefs.limits(np.zeros(len(problem.constraints))))
    margin = least_gain * np.ptp(seen.losses[seen.possible], axis=0)
    held = [problem.losses(_outcome(t).measurement) for t in feasible]
    better, gains = 0, []
    for draw in draws:
        keeps = (draw[:, m:] <= limits).all(axis=1)
        losses = draw[keeps, :m]
        better += _improves(losses + margin, held)
        best = held[0][0] if held else np.inf
        gains.append(max(0.0, best - float(losses[:, 0].min())) if len(losses) and held else 0.0)
    return better / DRAWS, float(np.mean(gains))


def _improves(losses: Floats, held: Sequence[tuple[float, ...]]) -> bool:
    """Whether some row is dominated by nothing that is held, nor equal to it."""
    rows = [tuple(row) for row in losses.tolist()]
    return any(not any(dominates(h, row) or h == row for h in held) for row in rows)
