"""One keep ratio for all sites, swept downwards, then bisected between feasible and infeasible.

Reference:
    The uniform baseline of AMC (He et al., ECCV 2018) and of width multipliers (Howard et al.,
    MobileNets, 2017); the bisection on a uniform ratio is the baseline in the code of Chen et al.
    (ECCV 2018).

Deviations:
    * Every setting of the unordered knobs (precision, selector) is swept.
    * Ratios that arithmetic refuses are not tried.
    * When the ratios are spent, the remaining budget goes to neighbours of the best plans, one
      knob a step, so that the comparison is at equal budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from compression.space import Point
from search.arithmetic import as_points
from search.errors import ProblemInvalid
from search.history import canonical, generator, settings
from search.measurement import Measured
from search.point_agent import PointAgent
from search.problem import Problem
from search.sampling import new_point
from search.trial import Trial

RATIOS = np.linspace(1.0, 0.0, 401)[:-1]
"""Keep ratios whose nearest points make the ladder: finer than 1 of 256 channels."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the uniform sweep.

    Attributes:
        levels: Keep ratios of the first, coarse sweep, at least 2.
    """

    levels: int = 8

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ProblemInvalid(f"uniform: levels is {self.levels}; at least 2 are required")


class Uniform(PointAgent):
    """Sweeps one keep ratio for all sites, then bisects to the largest feasible one."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem)
        self._options = options
        self._ladders = [self._ladder(setting) for setting in settings(problem.space)]

    def _ladder(self, setting: dict[int, int]) -> list[Point]:
        """Return the uniform points of one setting that arithmetic allows, widest first.

        Without the untouched model: that is the baseline, which is measured anyway.
        """
        space = self._problem.space
        rungs: dict[Point, None] = {}
        for keep_ratio in RATIOS:
            point = list(space.uniform(float(keep_ratio)))
            for knob, index in setting.items():
                point[knob] = index
            rungs[canonical(space, point)] = None
        rungs[canonical(space, [setting.get(i, s) for i, s in enumerate(space.smallest())])] = None
        rungs.pop(canonical(space, space.dense()), None)
        ladder = list(rungs)
        keeps = self._repair.keeps_bounds(as_points(ladder, len(space.knobs)))
        return [point for point, kept in zip(ladder, keeps, strict=True) if kept]

    def _suggest(self) -> Point | None:
        new = self._history.is_new
        for ladder in self._ladders:
            count = min(self._options.levels, len(ladder))
            for index in {i * (len(ladder) - 1) // max(1, count - 1): None for i in range(count)}:
                if new(ladder[index]):
                    return ladder[index]
        verdicts = {told.point: self._feasible(told.trial) for told in self._history.told}
        for ladder in self._ladders:
            middle = _between(ladder, verdicts)
            if middle is not None and new(middle):
                return middle
        for ladder in self._ladders:
            edge = next((i for i, p in enumerate(ladder) if verdicts.get(p)), 0)
            for index in sorted(range(len(ladder)), key=lambda i: (abs(i - edge), i)):
                if new(ladder[index]):
                    return ladder[index]
        told = sorted(self._history.told, key=lambda t: self._problem.rank_key(t.trial))
        rng = generator(self._problem, self._history.asked)
        return new_point(self._repair, self._history, rng, near=[t.point for t in told[:20]])

    def _feasible(self, trial: Trial) -> bool:
        outcome = trial.outcome
        return isinstance(outcome, Measured) and self._problem.feasible(outcome.measurement)


def _between(ladder: Sequence[Point], verdicts: dict[Point, bool]) -> Point | None:
    """Return the rung halfway between the widest feasible and the next wider infeasible one."""
    below = next((i for i, point in enumerate(ladder) if verdicts.get(point)), None)
    if below is None:
        return None
    above = max((i for i in range(below) if verdicts.get(ladder[i]) is False), default=-1)
    return ladder[(above + below) // 2] if below - above > 1 else None
