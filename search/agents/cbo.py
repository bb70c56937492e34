"""Constrained Bayesian optimisation under cooled bounds.

Bounds that the dense model breaks start loose and tighten step by step to their targets. Within a
step, Gaussian processes model the loss and every measured bound, and the plan is asked for whose
expected improvement times probability of feasibility is largest.

Reference:
    C. Chen, F. Tung, N. Vedula, G. Mori: Constraint-Aware Deep Neural Network Compression, ECCV
    2018 (cooling, constrained expected improvement, the advancing base); D. Eriksson, M.
    Poloczek: Scalable Constrained Bayesian Optimization, AISTATS 2021 (trust region, constrained
    Thompson sampling, the transform of violations); several objectives by noisy expected
    hypervolume improvement (S. Daulton et al., NeurIPS 2021) or by random weights (J. Knowles:
    ParEGO, 2006); pending trials by the kriging believer of D. Ginsbourger et al., 2010.

Deviations:
    * The base model advances only where `advance` says so. Else every trial starts from the dense
      model and observations stay valid over all steps.
    * Without an advancing base, the steps before the last take `cooling_share` of the trials
      after the design, because a trial above the target teaches but cannot win.
    * On a new base the observations of the one before serve until three trials of it are measured.
      Times and sizes do not depend on what a base has learnt: they are modelled over all bases.
    * Channels are removed, not single weights.
    * Bounds on macs, flops and params are exact arithmetic: candidates are shrunk to them and
      they are not modelled. The surrogates of the other bounds see the exact costs of a plan.
    * Violations enter as bilog: resolved near the bound, tamed far from it.
    * The paper's `expected-improvement-plus` is replaced by log constrained expected improvement
      over a discrete candidate set: random points, neighbours of the best, and a hill climb that
      also exchanges width between two knobs: at a bound no single one can grow.
    * A single accuracy is modelled as log-odds. Its improvement is over the best belief, not the
      luckiest reading, and counts only a share (`exploration`) of the deviation: with some sixty
      trials, plans near the best win more than what is far and unknown.
    * With nothing feasible yet, the probability of feasibility alone decides (the paper's code
      fails there).
    * The trust region is an option, not the rule: with 27 sites and 60 trials on a made-up network,
      expected improvement found better plans than the box with Thompson sampling.
    * With several objectives there is no trust region: one box does not hold a front.
    * A plan that cannot be evaluated counts as the worst loss and violation seen; failed trials
      say nothing of their plan and are ignored.
    * The dense baseline, measured before the search, is an observation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from compression.space import Point
from search.agent import Prepare, Request, Snapshot
from search.arithmetic import Floats, Points, as_points
from search.bases import BaseHistory, Bases
from search.cooling import SCHEDULES, Cooling, Schedule
from search.errors import ProblemInvalid
from search.history import generator
from search.metric import METRICS
from search.one_thread import one_thread
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import design, new_point
from search.surrogate.observations import Observations, observe
from search.surrogate.three import FEWEST, Three, channel_columns
from search.trial import Trial

if TYPE_CHECKING:
    from search.surrogate.chooser import Chooser

MANY_KNOBS = 10
"""Knobs beyond which a trust region is used by itself."""

INCUMBENTS = 4
"""Best plans near which something new is looked for when no candidate is new."""

FEWEST_OBSERVATIONS = 3
"""Below, surrogates are not worth fitting."""

COOLING_SHARE = 0.25
"""Of the trials after the design, spent above the targets where the base does not advance."""

THREE_FROM, THREE_TRIALS = 20, 3
"""Channel knobs from which on, and trials a knob below which, three numbers stand for them."""

Switch = Literal["auto", "on", "off"]
CHOICES = {
    "schedule": SCHEDULES,
    "trust_region": ("auto", "on", "off"),
    "front": ("nehvi", "parego"),
    "parametrisation": ("auto", "full", "three"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of constrained Bayesian optimisation.

    Attributes:
        schedule: How bounds cool: `exponential`, `linear` or `one_step`.
        steps: Cooling steps T, the last at the target, at least 1.
        rate: k of the exponential schedule, per step, positive.
        cooling_share: Share of the trials after the design that is spent before the last step,
            in [0, 1); None takes a quarter, or all steps alike where the base advances.
        startup_trials: Trials of the design, at least 2; None takes 2 per knob, at least 8, at
            most a third of the budget.
        candidates: Random candidates per request, 16 to 20000.
        fit_iterations: Steps of the optimiser that fits the surrogates, at least 1; None takes
            fewer the more has been observed.
        exploration: Factor on the deviation of a single loss in its expected improvement, positive.
        trust_region: Whether candidates come from a box around the best plan, chosen by Thompson
            sampling: `on`, `off`, or `auto` for more than 10 knobs.
        batch: Trials under way at once, at least 1; only the box's patience depends on it.
        front: How several objectives are weighed: `nehvi` (up to 3) or `parego`.
        parametrisation: What widths are thought of as: `full`, one number each; `three` for all;
            `auto` for three where knobs are many and trials few.
        advance: Whether the best plan of each step is fine-tuned and later plans start there.
        advance_steps: Training steps of such a fine-tuning, at least 1.
    """

    schedule: Schedule = "exponential"
    steps: int = 5
    rate: float = 0.5
    cooling_share: float | None = None
    startup_trials: int | None = None
    candidates: int = 400
    fit_iterations: int | None = None
    exploration: float = 0.3
    trust_region: Switch = "off"
    batch: int = 4
    front: Literal["nehvi", "parego"] = "parego"
    parametrisation: Literal["auto", "full", "three"] = "full"
    advance: bool = False
    advance_steps: int = 200

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ProblemInvalid(
                    f"cbo: {name} is {getattr(self, name)!r}; choose from {', '.join(choices)}"
                )
        for name in ("steps", "batch", "advance_steps", "fit_iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ProblemInvalid(f"cbo: {name} is {value}; at least 1")
        if not self.exploration > 0:
            raise ProblemInvalid(f"cbo: exploration is {self.exploration}; it must be positive")
        if not self.rate > 0:
            raise ProblemInvalid(f"cbo: rate is {self.rate}; it must be positive")
        if self.cooling_share is not None and not 0.0 <= self.cooling_share < 1.0:
            raise ProblemInvalid(
                f"cbo: cooling_share is {self.cooling_share}; it must be in [0, 1)"
            )
        if self.startup_trials is not None and self.startup_trials < 2:
            raise ProblemInvalid(f"cbo: startup_trials is {self.startup_trials}; at least 2")
        if not 16 <= self.candidates <= 20_000:
            raise ProblemInvalid(f"cbo: candidates is {self.candidates}; 16..20000 is allowed")


class Cbo:
    """Learns loss and bounds by Gaussian processes and tightens the bounds as it goes."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._bases = Bases(problem, {"steps": options.advance_steps})
        self._repair = Repair(problem)
        self._three = Three(problem) if self._takes_three() else None
        share = options.cooling_share
        if share is None:
            share = 1 - 1 / options.steps if options.advance else COOLING_SHARE
        self._cooling = Cooling(
            problem,
            options.schedule,
            steps=options.steps,
            rate=options.rate,
            startup=self._startup_trials(),
            share=share,
        )
        self._by_arithmetic = np.array(
            [METRICS[c.metric].by_cost_table for c in problem.constraints], dtype=bool
        )
        self._design = design(
            self._repair,
            problem.seed,
            self._startup_trials(),
            self._cooling.slack(1)[self._by_arithmetic] / 2,
        )
        self._chooser: Chooser | None = None

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; fewer when the space is exhausted, or at a step's end."""
        requests: list[Request] = []
        while len(requests) < n and not self._bases.exhausted:
            if self._options.advance:
                if self._must_wait():
                    break
                order = self._preparation()
                if order is not None:
                    requests.append(order)
                    continue
            found = self._suggest()
            if found is None:
                break
            history, point = found
            requests.append(history.order(point))
        return requests

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials."""
        own = [t for t in trials if t.base is None] if not self._options.advance else trials
        self._bases.tell(own)

    def snapshot(self) -> Snapshot:
        """Return counts, pending points and orders; surrogates are fitted again."""
        return self._bases.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._bases.restore(snapshot)

    def _takes_three(self) -> bool:
        options, knobs = self._options, self._problem.space.knobs
        sites, budget = len(channel_columns(knobs)), self._problem.budget_trials
        if options.parametrisation == "auto":
            few = budget is not None and budget < THREE_TRIALS * sites
            return few and sites >= THREE_FROM
        return options.parametrisation == "three" and sites >= FEWEST

    def _has_region(self) -> bool:
        options, problem = self._options, self._problem
        if self._three is not None or len(problem.objectives) > 1:
            return False
        if options.trust_region == "auto":
            return len(problem.space.knobs) > MANY_KNOBS
        return options.trust_region == "on"

    def _startup_trials(self) -> int:
        if self._options.startup_trials is not None:
            return self._options.startup_trials
        budget = self._problem.budget_trials
        wanted = max(8, 2 * len(self._problem.space.knobs))
        return max(2, min(wanted, budget // 3 if budget else 24))

    def _must_wait(self) -> bool:
        """Whether a preparation, or the last trial of a step, is under way."""
        ended = self._cooling.step(self._bases.asked) - 1
        open_ = ended >= 1 and not self._bases.closed(ended)
        return self._bases.waiting or (open_ and bool(self._bases.pending))

    def _preparation(self) -> Prepare | None:
        """Return the training of the best plan of a step that has ended, once."""
        ended = self._cooling.step(self._bases.asked) - 1
        if ended < 1 or self._bases.closed(ended):
            return None
        seen = observe(self._problem, self._bases.present.told, baseline=False)
        best = None
        if seen.possible.any():
            order = self._ranking(seen, self._cooling.slack(ended))
            best = as_point(seen.points[order[0]])
        return self._bases.close(ended, best)

    def _ranking(self, seen: Observations, slack: Floats) -> Points:
        """Return the rows, best first: least violation, then least main loss."""
        excess = np.maximum(seen.violations - slack, 0.0).sum(axis=1)
        excess[~seen.possible] = np.inf
        return np.asarray(np.lexsort((seen.losses[:, 0], excess)))

    def _suggest(self) -> tuple[BaseHistory, Point] | None:
        """Return the next point and the base it starts from."""
        bases, asked = self._bases, self._bases.asked
        rng = generator(self._problem, asked)
        slack = self._cooling.slack(self._cooling.step(asked))
        on_dense = bases.present is bases.dense
        if asked < self._startup_trials() and on_dense:
            for point in self._design:
                if bases.dense.is_new(point):
                    return bases.dense, point
        seen = observe(self._problem, bases.learning.told, baseline=bases.learning is bases.dense)
        near: list[Point] = []
        if int(seen.possible.sum()) >= FEWEST_OBSERVATIONS:
            found = self._choose(seen, slack, rng)
            if found is not None:
                return bases.present, found
            if on_dense:
                best = self._ranking(seen, slack)[:INCUMBENTS]
                near = [as_point(row) for row in seen.points[best]]
        # Where the present base has no new plan within the bounds, the job's model may have some.
        exact = slack[self._by_arithmetic]
        found = new_point(self._repair, bases.dense, rng, near=near, slack=exact)
        return None if found is None else (bases.dense, found)

    def _choose(self, seen: Observations, slack: Floats, rng: np.random.Generator) -> Point | None:
        from search.surrogate.chooser import Chooser, Moment

        options, bases = self._options, self._bases
        if self._chooser is None:
            self._chooser = Chooser(
                self._problem,
                self._repair,
                candidates=options.candidates,
                three=self._three,
                region=self._has_region(),
                batch=options.batch,
                design=self._startup_trials(),
                front=options.front,
                fit_iterations=options.fit_iterations,
                exploration=options.exploration,
            )
        everything = seen
        if len(bases.every) > 1:
            told = [told for history in bases.every for told in history.told]
            told.sort(key=lambda t: (t.trial.number, t.trial.id))
            everything = observe(self._problem, told)
        moment = Moment(
            seen=seen,
            everything=everything,
            pending=as_points(bases.pending, len(self._problem.space.knobs)),
            slack=slack,
            widest=bases.widest,
            taken=bases.taken,
            rng=rng,
        )
        with one_thread():
            return self._chooser.choose(moment)
