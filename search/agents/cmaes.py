"""CMA-ES with margin: a normal distribution over all knobs that moves to where good plans are.

Reference:
    N. Hansen, A. Ostermeier: Completely Derandomized Self-Adaptation in Evolution Strategies,
    Evolutionary Computation 9(2), 2001; for integers R. Hamano et al.: CMA-ES with Margin, GECCO
    2022. The optimiser is `CMAwM` of the package `cmaes`, the one that Optuna's `CmaEsSampler`
    wraps. Points that the strategy did not draw enter as in N. Hansen: Injecting External
    Solutions Into CMA-ES, 2011, with its limit on their length.

Deviations:
    * The strategy is rebuilt for every request from the told trials, in the order of proposal, so
      that nothing hides in it; Optuna's sampler keeps its state in the study.
    * Only ranks count: within a generation plans that keep the bounds come first, by loss, then
      the others by total violation. Several objectives are ranked by non-dominated layers.
    * Draws that break a bound on macs, flops or params are shrunk to it and enter as applied.
    * Knobs with more than two unordered choices are copied from one of the best trials.
    * The first mean is the middle of the best quarter of a design of uniform and Sobol points.
    * No plan is asked for twice: repeated draws are drawn again, then moved by one step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from compression.space import Point
from search.arithmetic import Floats, as_points
from search.errors import ProblemInvalid
from search.history import Told, canonical, generator
from search.point_agent import PointAgent
from search.problem import Problem
from search.repair import as_point
from search.sampling import design, new_point

TRIES = 8
"""Draws before neighbours of the last one are taken instead."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of CMA-ES.

    Attributes:
        population_size: Members of a generation, at least 4; None takes `4 + 3 ln(knobs)`, at most
            a sixth of the budget.
        sigma: First standard deviation, as a share of each knob's range, in (0, 1].
    """

    population_size: int | None = None
    sigma: float = 0.2

    def __post_init__(self) -> None:
        if self.population_size is not None and self.population_size < 4:
            raise ProblemInvalid(f"cmaes: population_size is {self.population_size}; at least 4")
        if not 0.0 < self.sigma <= 1.0:
            raise ProblemInvalid(f"cmaes: sigma is {self.sigma}; it must be in (0, 1]")


class Cmaes(PointAgent):
    """Adapts mean and covariance of a normal distribution to the best plans of each generation."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem)
        self._options = options
        knobs = problem.space.knobs
        self._axes = [
            i
            for i, k in enumerate(knobs)
            if len(k.choices) == 2 or (k.ordered and len(k.choices) > 1)
        ]
        self._top = np.array([len(knobs[i].choices) - 1 for i in self._axes], dtype=np.int64)
        budget = problem.budget_trials or 60
        usual = 4 + int(3 * np.log(max(1, len(self._axes))))
        self._size = options.population_size or max(4, min(usual, budget // 6))
        self._startup_trials = 2 * self._size
        self._design = design(self._repair, problem.seed, self._startup_trials)

    def _suggest(self) -> Point | None:
        history = self._history
        rng = generator(self._problem, history.asked)
        if history.asked < self._startup_trials:
            for point in self._design:
                if history.is_new(point):
                    return point
        told = [t for t in history.told if t.measurement is not None]
        # With one axis there is no covariance to adapt.
        if len(told) < self._size or len(self._axes) < 2:
            return new_point(self._repair, history, rng)
        best = self._ranked(told)[: max(1, len(told) // 4)]
        strategy = self._strategy(told)
        strategy.reseed_rng(int(rng.integers(2**31)))
        drawn: list[Point] = []
        for _ in range(TRIES):
            row = list(best[int(rng.integers(len(best)))].point)
            for axis, value in zip(self._axes, self._indices(strategy.ask()[0]), strict=True):
                row[axis] = int(value)
            repaired = self._repair.shrink(as_points([row], len(row)))
            point = canonical(self._problem.space, as_point(repaired[0]))
            drawn.append(point)
            if history.is_new(point) and bool(self._repair.keeps_bounds(repaired)[0]):
                return point
        return new_point(self._repair, history, rng, near=drawn)

    def _indices(self, x: Floats) -> Any:
        return np.clip(np.rint(x * self._top), 0, self._top).astype(np.int64)

    def _unit(self, point: Point) -> Floats:
        return np.array([point[axis] for axis in self._axes]) / self._top

    def _strategy(self, told: list[Told]) -> Any:
        """Return the strategy (`CMAwM`) after every full generation beyond the design."""
        from cmaes import CMAwM  # type: ignore[import-untyped]  # it ships no stubs

        start = min(len(told), self._startup_trials)
        first = self._ranked(told[:start])
        best = np.array([self._unit(t.point) for t in first[: max(1, len(first) // 4)]])
        d = len(self._axes)
        strategy = CMAwM(
            mean=best.mean(axis=0),
            sigma=self._options.sigma,
            bounds=np.tile([0.0, 1.0], (d, 1)),
            steps=1.0 / self._top,
            population_size=self._size,
            seed=0,
        )
        for begin in range(start, len(told) - self._size + 1, self._size):
            generation = self._ranked(told[begin : begin + self._size])
            mean = strategy.mean
            reach = strategy._cma._sigma * np.sqrt(d) * (1 + 2 / (d + 2))
            solutions = []
            for rank, member in enumerate(generation):
                step = self._unit(member.point) - mean
                length = float(np.linalg.norm(step))
                solutions.append((mean + step * min(1.0, reach / (length or 1.0)), float(rank)))
            strategy.tell(solutions)
        return strategy

    def _ranked(self, told: list[Told]) -> list[Told]:
        """Return trials from best to worst."""
        problem = self._problem
        if len(problem.objectives) == 1:
            return sorted(told, key=lambda t: problem.rank_key(t.trial))
        losses = np.array([problem.losses(t.measurement) for t in told if t.measurement])
        worse = (losses[:, None] >= losses[None]).all(axis=2)
        worse &= (losses[:, None] > losses[None]).any(axis=2)
        beaten = {t.trial.id: int(count) for t, count in zip(told, worse.sum(axis=1), strict=True)}
        return sorted(
            told,
            key=lambda t: (
                problem.rank_key(t.trial)[0],
                beaten[t.trial.id],
                t.trial.plan.digest,
            ),
        )
