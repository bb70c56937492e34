"""Which candidate is asked for next: where beliefs, bounds and pending trials meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compression.space import Point
from search.arithmetic import Floats, Points
from search.metric import ACCURACIES, METRICS
from search.problem import Problem
from search.repair import Repair, as_point
from search.surrogate.acquisition import log_merit
from search.surrogate.beliefs import Beliefs, believe
from search.surrogate.candidates import Candidates
from search.surrogate.features import Features, as_log_odds, chebyshev
from search.surrogate.nehvi import MOST_OBJECTIVES, log_gain, reference_point
from search.surrogate.observations import Observations
from search.surrogate.three import Three, channel_columns
from search.surrogate.trust_region import perturbed, replay, thompson

INCUMBENTS = 4
"""Best plans whose neighbourhoods are candidates."""

CLIMBS, VOLUME_CLIMBS = 12, 3
"""Rounds of moving the best candidate to a better neighbour, at most; fewer by hypervolume, which
costs more."""

Merit = Callable[[Points], Floats]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """All that one request depends on.

    Attributes:
        seen: Observations of one base, in order of proposal.
        everything: Observations of all bases, for what does not depend on training.
        pending: `q x d` points under way.
        slack: Violation that is still allowed, one per constraint.
        widest: `d` choices that no plan exceeds.
        taken: Points asked for or told.
        rng: The request's randomness.
    """

    seen: Observations
    everything: Observations
    pending: Points
    slack: Floats
    widest: Points
    taken: Collection[Point]
    rng: np.random.Generator

    @property
    def excess(self) -> Floats:
        """Total violation of each observation, beyond what is allowed."""
        return np.asarray(np.maximum(self.seen.violations - self.slack, 0.0).sum(axis=1))


class Chooser:
    """Fits surrogates to observations and picks the next point."""

    def __init__(
        self,
        problem: Problem,
        repair: Repair,
        *,
        candidates: int,
        three: Three | None = None,
        region: bool = False,
        batch: int = 1,
        design: int = 0,
        front: Literal["nehvi", "parego"] = "nehvi",
        fit_iterations: int | None = None,
        exploration: float = 1.0,
    ) -> None:
        """Prepare.

        Args:
            problem: Its space names the points.
            repair: Of the problem.
            candidates: Random candidates per request.
            three: What stands for the channel knobs.
            region: Whether candidates come from a trust region; for one objective.
            batch: Trials under way at once, for the region's patience.
            design: Observations before the region's first.
            front: How several objectives are weighed.
            fit_iterations: Of the optimiser that fits the surrogates.
            exploration: Factor on the deviation of a single loss.
        """
        self._problem = problem
        self._repair = repair
        self._features = Features(problem, three)
        self._candidates = Candidates(problem, repair, candidates, three)
        self._count = candidates
        self._region = region
        self._batch = batch
        self._design = design
        self._front = front
        self._iterations = fit_iterations
        self._exploration = exploration
        self._by_arithmetic = np.array(
            [METRICS[c.metric].by_cost_table for c in problem.constraints], dtype=bool
        )
        main = problem.objectives[0]
        self._counts_accuracy = main.metric in ACCURACIES and main.direction == "maximize"
        self._fitted: tuple[object, Beliefs] | None = None

    def choose(self, moment: Moment) -> Point | None:
        """Return a new point that keeps the arithmetic bounds; None where no candidate does."""
        if self._region:
            return self._from_region(moment)
        feasible = moment.seen.possible & (moment.excess <= 0)
        losses = moment.seen.losses
        several = losses.shape[1] > 1
        by_volume = self._front == "nehvi" and 1 < losses.shape[1] <= MOST_OBJECTIVES
        if several and not (by_volume and feasible.any()):
            weights = moment.rng.dirichlet(np.ones(losses.shape[1]))
            losses = chebyshev(losses, weights)[:, None]
        if not several and self._counts_accuracy:
            losses = as_log_odds(losses)
        beliefs = self.believe(losses, moment)
        if losses.shape[1] > 1:
            merit, climbs = self._gain(beliefs, feasible, moment), VOLUME_CLIMBS
        else:
            exploration = 1.0 if several else self._exploration
            merit, climbs = _improvement(beliefs, feasible, moment, exploration), CLIMBS
        order = np.lexsort((losses[:, 0], moment.excess))
        centres = [as_point(row) for row in moment.seen.points[order[:INCUMBENTS]]]
        return self._climb(merit, centres, moment, climbs)

    def believe(self, losses: Floats, moment: Moment) -> Beliefs:
        """Return surrogates of what was told, fitted once for the same observations."""
        seen, everything = moment.seen, moment.everything
        tables = (losses, seen.points, seen.violations, everything.points, everything.violations)
        key = tuple(table.tobytes() for table in tables)
        if self._fitted is None or self._fitted[0] != key:
            beliefs = believe(
                self._problem, self._features, losses, seen, everything,
                max_iterations=self._iterations,
            )  # fmt: skip
            self._fitted = (key, beliefs)
        return self._fitted[1]

    def _gain(self, beliefs: Beliefs, feasible: NDArray[np.bool_], moment: Moment) -> Merit:
        reference = reference_point(self._problem, moment.seen.losses[feasible])
        seed = int(moment.rng.integers(2**31))

        return log_gain(
            beliefs, moment.seen.points[feasible], moment.pending,
            limits=beliefs.limits(moment.slack), reference=reference, seed=seed,
        )  # fmt: skip

    def _admissible(self, points: Points, moment: Moment) -> Points:
        exact = moment.slack[self._by_arithmetic]
        return self._candidates.admissible(points, exact, moment.widest, moment.taken)

    def _climb(
        self, merit: Merit, centres: Sequence[Point], moment: Moment, climbs: int
    ) -> Point | None:
        """Return the best of the candidates, after a few steps uphill."""
        exact, rng = moment.slack[self._by_arithmetic], moment.rng
        wide = self._candidates.wide(exact, moment.widest, rng)
        near = [self._candidates.around(c, exact, moment.widest, rng) for c in centres]
        pool = self._admissible(np.vstack([wide, *near]), moment)
        if not len(pool):
            return None
        merits = merit(pool)
        for _ in range(climbs):
            top = as_point(pool[int(np.argmax(merits))])
            around = self._admissible(self._candidates.steps(top, exact, rng), moment)
            if not len(around):
                break
            gained = merit(around)
            if gained.max() <= merits.max():
                break
            pool, merits = np.vstack([pool, around]), np.concatenate([merits, gained])
        return as_point(pool[int(np.argmax(merits))])

    def _from_region(self, moment: Moment) -> Point | None:
        """Return what one joint draw calls best within the trust region."""
        seen, rng = moment.seen, moment.rng
        exact = moment.slack[self._by_arithmetic]
        beliefs = self.believe(seen.losses, moment)
        d = seen.points.shape[1]
        region = replay(
            moment.excess, seen.losses[:, 0], knobs=d, batch=self._batch, design=self._design
        )
        if region.centre is None:
            pool = self._candidates.wide(exact, moment.widest, rng)
        else:
            drawn = perturbed(
                seen.points[region.centre], self._candidates.counts, self._candidates.ordered,
                self._weights(beliefs), side=region.side, rng=rng, count=self._count,
            )  # fmt: skip
            drawn = np.minimum(drawn, moment.widest)
            half = len(drawn) // 2
            filled = np.minimum(self._repair.fill(drawn[:half], exact), moment.widest)
            pool = np.vstack([filled, self._repair.shrink(drawn[half:], exact)])
        pool = self._admissible(pool, moment)
        if not len(pool):
            return None
        sample = beliefs.believing(moment.pending).sample(pool, rng)[0]
        return as_point(pool[thompson(sample[:, 0], sample[:, 1:], beliefs.limits(moment.slack))])

    def _weights(self, beliefs: Beliefs) -> Floats:
        """Return the box's proportions: long where the loss changes slowly; geometric mean 1."""
        weights = np.ones(len(self._problem.space.knobs))
        columns = channel_columns(self._problem.space.knobs)
        lengths = beliefs.losses[0].processes[0].parameters.lengths
        for knob, column in zip(columns, self._features.channel_columns, strict=True):
            weights[knob] = lengths[column]
        if columns:
            weights[columns] /= np.exp(np.log(weights[columns]).mean())
        return weights


def _improvement(
    beliefs: Beliefs, feasible: NDArray[np.bool_], moment: Moment, exploration: float
) -> Merit:
    """Return the constrained expected improvement, pending points believed.

    It is over the best belief of a plan seen, not over the best reading: the best of many noisy
    readings is a lucky one.
    """
    believing = beliefs.believing(moment.pending)
    best = None
    if feasible.any():
        best = float(beliefs.predict(moment.seen.points[feasible])[0][:, 0].min())
    limits = beliefs.limits(moment.slack)

    def merit(points: Points) -> Floats:
        mean, deviation = believing.predict(points)
        deviation[:, 0] *= exploration
        return log_merit(mean, deviation, best=best, limits=limits)

    return merit
