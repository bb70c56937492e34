"""The bridge between plan spaces and Optuna's samplers, which all agents around them share.

A study is rebuilt for every request from the told trials and the pending points, with a sampler
seeded for that request. So nothing hides in a sampler: the suggestion is a function of seed,
count, told trials and pending points. Rebuilding takes some milliseconds per hundred trials.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compression.space import PlanSpace, Point
from search.arithmetic import as_points
from search.history import History, Told, canonical, generator
from search.point_agent import PointAgent
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import design, new_point

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

REFUSED = 10.0
"""Violation of a plan that cannot be evaluated: worse than any measured miss worth having."""

TRIES = 8
"""Suggestions drawn from a sampler before neighbours of the last one are taken instead."""


def generation_size(problem: Problem) -> int:
    """Return the members of a generation: a fifth of the budget of trials, within 8..32."""
    return min(32, max(8, (problem.budget_trials or 60) // 5))


def distributions(space: PlanSpace, *, relaxed: bool = False) -> dict[str, BaseDistribution]:
    """Return one Optuna distribution per knob, over choice indices, in knob order.

    Args:
        space: Of the plans.
        relaxed: Whether ordered knobs and those of two choices are real numbers, to be rounded:
            for samplers that follow gradients, and would try the choices of integers one by one.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for knob in space.knobs:
        top = len(knob.choices) - 1
        if relaxed and (knob.ordered or top == 1):
            found[knob.name] = FloatDistribution(0.0, float(top))
        elif knob.ordered:
            found[knob.name] = IntDistribution(0, top)
        else:
            found[knob.name] = CategoricalDistribution(tuple(range(top + 1)))
    return found


def parameters(space: PlanSpace, point: Point) -> dict[str, int]:
    """Return the Optuna parameters of a point."""
    return {knob.name: index for knob, index in zip(space.knobs, point, strict=True)}


def frozen(
    problem: Problem,
    told: Told,
    space: dict[str, BaseDistribution],
    attributes: Mapping[str, Any],
) -> FrozenTrial | None:
    """Return a told trial as Optuna keeps it; None where it says nothing of the plan.

    Measured trials are complete, with one value to minimise per objective and one constraint per
    constraint (`<= 0` is feasible, Optuna's convention and ours), `evaluable` where the problem
    has none. A plan that cannot be evaluated is a pruned trial that violates everything. Failed
    and cancelled trials are left out.
    """
    from optuna.trial import TrialState, create_trial

    point = parameters(problem.space, told.point)
    names = [f"{number}:{c.key}" for number, c in enumerate(problem.constraints)] or ["evaluable"]
    if told.measurement is not None:
        violations = problem.violations(told.measurement) or (0.0,)
        return create_trial(
            state=TrialState.COMPLETE,
            values=list(problem.losses(told.measurement)),
            params=point,
            distributions=space,
            system_attrs=dict(attributes),
            constraints=dict(zip(names, violations, strict=True)),
        )
    if told.impossible:
        return create_trial(
            state=TrialState.PRUNED,
            params=point,
            distributions=space,
            constraints=dict.fromkeys(names, REFUSED),
        )
    return None


def build(
    problem: Problem,
    history: History,
    sampler: BaseSampler,
    space: dict[str, BaseDistribution],
    *,
    generation_size: int | None = None,
) -> Study:
    """Return an in-memory study that knows every told trial and runs every pending point.

    Args:
        problem: Gives the directions: all losses are minimised.
        history: What is known.
        sampler: Seeded for this request.
        space: The problem's `distributions`.
        generation_size: For genetic samplers: measured trials are put into generations of this
            many, in the order of proposal.
    """
    import optuna
    from optuna.samplers import NSGAIISampler
    from optuna.trial import TrialState, create_trial

    # Else each rebuilt study announces itself, and that few plans are promising any more.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize"] * len(problem.objectives), sampler=sampler)
    complete = 0
    for told in history.told:
        attributes: dict[str, Any] = {}
        if generation_size is not None and told.measurement is not None:
            attributes[NSGAIISampler._get_generation_key()] = complete // generation_size
            complete += 1
        trial = frozen(problem, told, space, attributes)
        if trial is not None:
            study.add_trial(trial)
    for point in history.pending:
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=parameters(problem.space, point),
                distributions=space,
            )
        )
    return study


def suggest(
    study: Study,
    repair: Repair,
    history: History,
    fixed: dict[str, BaseDistribution],
    tries: int = TRIES,
) -> tuple[Point | None, list[Point]]:
    """Return a new point from the study's sampler, shrunk to the arithmetic bounds.

    Args:
        study: As `build` returns it.
        repair: Of the problem.
        history: What is known.
        fixed: The `distributions` with which the study was built.
        tries: Most suggestions that are drawn.

    Returns:
        The first new suggestion that keeps the bounds, or None, and all that were drawn.
    """
    drawn: list[Point] = []
    for _ in range(tries):
        trial = study.ask(fixed)
        raw = [round(trial.params[name]) for name in fixed]
        study.tell(trial, state=_fail())
        row = repair.shrink(as_points([raw], len(fixed)))
        point = canonical(repair.space, as_point(row[0]))
        drawn.append(point)
        if history.is_new(point) and bool(np.all(repair.keeps_bounds(row))):
            return point, drawn
    return None, drawn


def _fail() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


class SamplerAgent(PointAgent):
    """A design of uniform and Sobol points first, then the suggestions of an Optuna sampler.

    Suggestions that break a bound on macs, flops or params are shrunk to it; repeated ones are
    drawn again, then moved by one step.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        startup_trials: int,
        generation_size: int | None = None,
        tries: int = TRIES,
        relaxed: bool = False,
    ) -> None:
        """Lay out the design.

        Args:
            problem: To be solved.
            startup_trials: Points of the design.
            generation_size: For genetic samplers, see `build`; the sampler then waits for one
                full generation of measured trials.
            tries: Suggestions drawn before neighbours of the last one are taken instead.
            relaxed: See `distributions`.
        """
        super().__init__(problem)
        self._startup_trials = startup_trials
        self._generation_size = generation_size
        self._tries = tries
        self._distributions = distributions(problem.space, relaxed=relaxed)
        self._design = design(self._repair, problem.seed, startup_trials)

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """Return the sampler of one request."""

    def _suggest(self) -> Point | None:
        from optuna.exceptions import ExperimentalWarning

        history = self._history
        rng = generator(self._problem, history.asked)
        if history.asked < self._startup_trials:
            for point in self._design:
                if history.is_new(point):
                    return point
        if len(history.measured) < (self._generation_size or 2):
            return new_point(self._repair, history, rng)
        with warnings.catch_warnings():
            # Optuna calls some samplers experimental in every process; which ones we know.
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = self._sampler(int(rng.integers(2**31)))
        study = build(
            self._problem,
            history,
            sampler,
            self._distributions,
            generation_size=self._generation_size,
        )
        found, drawn = suggest(study, self._repair, history, self._distributions, self._tries)
        return found or new_point(self._repair, history, rng, near=drawn)
