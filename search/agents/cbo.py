"""Constrained Bayesian optimisation under cooled bounds.

Bounds that the dense model breaks start loose and tighten step by step to their targets. Within a
step, Gaussian processes model the loss and every measured bound, and the plan is asked for whose
expected improvement times probability of feasibility is largest.

Reference:
    C. Chen, F. Tung, N. Vedula, G. Mori: Constraint-Aware Deep Neural Network Compression, ECCV
    2018 (cooling, constrained expected improvement); the transform of violations from D.
    Eriksson, M. Poloczek: Scalable Constrained Bayesian Optimization, AISTATS 2021; several
    objectives by random weights as in J. Knowles: ParEGO, 2006; pending trials by the kriging
    believer of D. Ginsbourger et al., 2010.

Deviations:
    * The base model does not advance: every trial starts from the dense model, and the paper's
      fine-tuning after each cooling step is not ordered. Observations therefore stay valid over
      all steps and one set of surrogates serves them all.
    * The steps before the last take `cooling_share` of the trials after the design, because
      without an advancing base a trial above the target teaches but cannot win.
    * Channels are removed, not single weights.
    * Bounds on macs, flops and params are exact arithmetic: candidates are shrunk to them and
      they are not modelled. The surrogates of the other bounds see the exact costs of a plan.
    * Violations enter as bilog: resolved near the bound, tamed far from it.
    * The paper's `expected-improvement-plus` is replaced by log constrained expected improvement
      over a discrete candidate set: random points, neighbours of the best, and a short hill climb.
    * With nothing feasible yet, the probability of feasibility alone decides (the paper's code
      fails there).
    * A plan that cannot be evaluated counts as the worst loss and violation seen; failed trials
      say nothing of their plan and are ignored.
    * The dense baseline, measured before the search, is an observation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compression.space import Point
from search.agent import Request, Snapshot
from search.arithmetic import Floats, Points, as_points
from search.cooling import SCHEDULES, Schedule, cooled
from search.errors import ProblemInvalid
from search.history import History, canonical, fill, generator
from search.metric import METRICS
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import design, draw, neighbours, new_point, uniform_points
from search.trial import Trial

if TYPE_CHECKING:
    from search.surrogate.gp import Surrogate

INCUMBENTS = 4
"""Best plans whose neighbourhoods are candidates."""

CLIMBS = 3
"""Rounds of moving the best candidate to a better neighbour."""

WORST_VIOLATION = 1.0
"""Least violation of a plan that cannot be evaluated: the bound missed by its whole size."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of constrained Bayesian optimisation.

    Attributes:
        schedule: How bounds cool: `exponential`, `linear` or `one_step`.
        steps: Cooling steps T, the last at the target, at least 1.
        rate: k of the exponential schedule, per step, positive.
        cooling_share: Share of the trials after the design that is spent before the last step,
            in [0, 1).
        startup_trials: Trials of the design, at least 2; None takes 2 per knob, at least 8, at
            most a third of the budget.
        candidates: Random candidates per request, 16 to 20000.
        fit_iterations: Steps of the optimiser that fits the surrogates, at least 1; None takes
            fewer the more has been observed.
    """

    schedule: Schedule = "exponential"
    steps: int = 5
    rate: float = 0.5
    cooling_share: float = 0.25
    startup_trials: int | None = None
    candidates: int = 400
    fit_iterations: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ProblemInvalid(
                f"cbo: schedule is {self.schedule!r}; choose from {', '.join(SCHEDULES)}"
            )
        if self.steps < 1:
            raise ProblemInvalid(f"cbo: steps is {self.steps}; at least 1")
        if not self.rate > 0:
            raise ProblemInvalid(f"cbo: rate is {self.rate}; it must be positive")
        if not 0.0 <= self.cooling_share < 1.0:
            raise ProblemInvalid(
                f"cbo: cooling_share is {self.cooling_share}; it must be in [0, 1)"
            )
        if self.startup_trials is not None and self.startup_trials < 2:
            raise ProblemInvalid(f"cbo: startup_trials is {self.startup_trials}; at least 2")
        if not 16 <= self.candidates <= 20_000:
            raise ProblemInvalid(f"cbo: candidates is {self.candidates}; 16..20000 is allowed")
        if self.fit_iterations is not None and self.fit_iterations < 1:
            raise ProblemInvalid(f"cbo: fit_iterations is {self.fit_iterations}; at least 1")


@dataclasses.dataclass(frozen=True, slots=True)
class Observations:
    """What the surrogates learn from.

    Attributes:
        points: `t x d`.
        losses: `t x m`, one column per objective, smaller is better.
        violations: `t x k`, one column per constraint of the problem.
        possible: `t` booleans, False for plans that cannot be evaluated.
    """

    points: Points
    losses: Floats
    violations: Floats
    possible: NDArray[np.bool_]


class Cbo:
    """Learns loss and bounds by Gaussian processes and tightens the bounds as it goes."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._history = History(problem)
        self._repair = Repair(problem)
        self._heat = np.array(
            [max(0.0, c.violation(problem.baseline, problem.baseline)) for c in problem.constraints]
        )
        self._by_arithmetic = np.array(
            [METRICS[c.metric].by_cost_table for c in problem.constraints], dtype=bool
        )
        self._design = design(
            self._repair,
            problem.seed,
            self._startup_trials(),
            self._slack(0)[self._by_arithmetic] / 2,
        )
        self._fitted: tuple[object, Surrogate, Surrogate | None] | None = None

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; fewer when the space is exhausted."""
        return fill(self._history, n, self._suggest)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials."""
        self._history.tell(trials)

    def snapshot(self) -> Snapshot:
        """Return the count and the pending points; surrogates are fitted again."""
        return self._history.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._history.restore(snapshot)

    def _startup_trials(self) -> int:
        if self._options.startup_trials is not None:
            return self._options.startup_trials
        budget = self._problem.budget_trials
        wanted = max(8, 2 * len(self._problem.space.knobs))
        return max(2, min(wanted, budget // 3 if budget else 24))

    def _step(self, asked: int) -> int:
        """Return the cooling step, 1..T, of the request after `asked` others."""
        options = self._options
        start = self._startup_trials()
        budget = self._problem.budget_trials or 4 * start
        loose = options.cooling_share * max(0, budget - start)
        if options.steps == 1 or asked - start >= loose:
            return options.steps
        return 1 + int(max(0, asked - start) / loose * (options.steps - 1))

    def _slack(self, asked: int) -> Floats:
        """Return the violation that is still allowed, one per constraint.

        A violation is an affine function of its metric, so cooling it from the dense model's to 0
        is cooling the bound from the dense value to the target. Bounds that the dense model keeps
        are not cooled.
        """
        options = self._options
        heat = cooled(
            options.schedule,
            1.0,
            0.0,
            step=self._step(asked),
            steps=options.steps,
            rate=options.rate,
        )
        return np.asarray(self._heat * heat)

    def _observations(self) -> Observations:
        problem = self._problem
        rows: list[Point] = []
        losses: list[tuple[float, ...]] = []
        violations: list[tuple[float, ...]] = []
        if all(objective.reading(problem.baseline) for objective in problem.objectives):
            measured = [(canonical(problem.space, problem.space.dense()), problem.baseline)]
        else:
            measured = []
        for point, measurement in measured + self._history.measured:
            rows.append(point)
            losses.append(problem.losses(measurement))
            violations.append(problem.violations(measurement))
        impossible = [told.point for told in self._history.told if told.impossible]
        m, k, t = len(problem.objectives), len(problem.constraints), len(rows)
        loss, violation = np.array(losses).reshape(t, m), np.array(violations).reshape(t, k)
        if impossible and t:
            worst = np.maximum(violation.max(axis=0, initial=0.0), WORST_VIOLATION)
            loss = np.vstack([loss, np.tile(loss.max(axis=0), (len(impossible), 1))])
            violation = np.vstack([violation, np.tile(worst, (len(impossible), 1))])
            rows += impossible
        return Observations(
            as_points(rows, len(problem.space.knobs)), loss, violation, np.arange(len(rows)) < t
        )

    def _suggest(self) -> Point | None:
        history, asked = self._history, self._history.asked
        rng = generator(self._problem, asked)
        slack = self._slack(asked)
        exact = slack[self._by_arithmetic]
        if asked < self._startup_trials():
            for point in self._design:
                if history.is_new(point):
                    return point
        seen = self._observations()
        if int(seen.possible.sum()) < 3:
            return new_point(self._repair, history, rng, slack=exact)
        from search.surrogate.gp import one_thread

        with one_thread():
            return self._best_candidate(seen, slack, rng)

    def _best_candidate(
        self, seen: Observations, slack: Floats, rng: np.random.Generator
    ) -> Point | None:
        from search.surrogate.acquisition import log_merit
        from search.surrogate.features import Features, bilog, chebyshev
        from search.surrogate.gp import fit

        space, history = self._problem.space, self._history
        features = Features(self._problem)
        modelled = ~self._by_arithmetic
        loss = seen.losses[:, 0]
        weights: Floats | None = None
        if seen.losses.shape[1] > 1:
            weights = rng.dirichlet(np.ones(seen.losses.shape[1]))
            loss = chebyshev(seen.losses, weights)
        excesses = bilog(seen.violations[:, modelled])
        key = (loss.tobytes(), excesses.tobytes(), seen.points.tobytes())
        if self._fitted is None or self._fitted[0] != key:
            iterations = self._options.fit_iterations
            decided, priced = features.decisions(seen.points), features.with_costs(seen.points)
            fitted = (
                fit(decided, loss[:, None], max_iterations=iterations),
                fit(priced, excesses, max_iterations=iterations) if modelled.any() else None,
            )
            self._fitted = (key, *fitted)
        pending = as_points(history.pending, len(space.knobs))
        of_loss, of_bounds = self._fitted[1:]
        of_loss = of_loss.believing(features.decisions(pending))
        of_bounds = of_bounds and of_bounds.believing(features.with_costs(pending))
        excess = np.maximum(seen.violations - slack, 0.0).sum(axis=1)
        feasible = seen.possible & (excess <= 0)
        best = float(loss[feasible].min()) if feasible.any() else None
        limits = [float(limit) for limit in bilog(slack[modelled])]
        exact = slack[self._by_arithmetic]

        def merit(points: Points) -> Floats:
            mean, deviation = of_loss.predict(features.decisions(points))
            if of_bounds is not None:
                bounds = of_bounds.predict(features.with_costs(points))
                mean, deviation = np.hstack([mean, bounds[0]]), np.hstack([deviation, bounds[1]])
            return log_merit(mean, deviation, best=best, limits=limits)

        order = np.lexsort((loss, excess))
        centres = [as_point(row) for row in seen.points[order[:INCUMBENTS]]]
        pool = self._admissible(self._candidates(centres, exact, rng), exact)
        if not len(pool):
            return new_point(self._repair, history, rng, near=centres, slack=exact)
        merits = merit(pool)
        for _ in range(CLIMBS):
            top = as_point(pool[int(np.argmax(merits))])
            around = self._admissible(neighbours(space, top), exact)
            if not len(around):
                break
            gained = merit(around)
            if gained.max() <= merits.max():
                break
            pool, merits = np.vstack([pool, around]), np.concatenate([merits, gained])
        return as_point(pool[int(np.argmax(merits))])

    def _candidates(
        self, centres: Sequence[Point], exact: Floats, rng: np.random.Generator
    ) -> Points:
        """Return random, uniform and filled points, and the surroundings of the centres."""
        space = self._problem.space
        drawn = draw(space, rng, self._options.candidates)
        half = len(drawn) // 2
        batches = [
            self._repair.fill(drawn[:half], exact),
            self._repair.shrink(drawn[half:], exact),
            uniform_points(space, np.linspace(0.1, 1.0, 19).tolist()),
        ]
        for centre in centres:
            batches.append(neighbours(space, centre))
            batches.append(self._repair.shrink(self._perturbed(centre, rng), exact))
        return np.vstack(batches)

    def _perturbed(self, centre: Point, rng: np.random.Generator) -> Points:
        """Return variations of a point: some knobs moved by some choices each."""
        counts = np.array([len(knob.choices) for knob in self._problem.space.knobs])
        ordered = np.array([knob.ordered for knob in self._problem.space.knobs])
        count, d = self._options.candidates // 4, len(counts)
        moved = rng.random((count, d)) < rng.uniform(1.0 / d, min(1.0, 8.0 / d), size=(count, 1))
        reach = np.maximum(1, counts // 4)
        steps = rng.integers(-reach, reach + 1, size=(count, d))
        shifted = np.clip(np.array(centre) + steps, 0, counts - 1)
        anew = rng.integers(0, counts, size=(count, d))
        return np.where(moved, np.where(ordered, shifted, anew), np.array(centre))

    def _admissible(self, points: Points, exact: Floats) -> Points:
        """Return the points that keep the cooled arithmetic bounds and are new, each once."""
        space = self._problem.space
        kept = points[self._repair.keeps_bounds(points, exact)]
        unique = {canonical(space, row): None for row in kept}
        return as_points([p for p in unique if self._history.is_new(p)], len(space.knobs))
