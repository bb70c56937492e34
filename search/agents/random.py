"""Random search among the plans that keep the arithmetic bounds.

Reference:
    J. Bergstra, Y. Bengio: Random Search for Hyper-Parameter Optimization, JMLR 2012. Random
    strategies within a budget of FLOPs are also the proposals of EagleEye (B. Li et al.: Fast
    Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020): with trials that
    recalibrate BatchNorm, as all do, this is the control that every agent has to beat.

Deviations:
    * Draws have a random level, so that the sizes of the networks differ; knobs drawn each on its
      own would give nearly the same size every time.
    * Draws that break a bound on macs, flops or params are drawn again or shrunk to it, and the
      share `fill` of all draws is grown to it by one factor: what arithmetic decides needs no
      trial.
"""

from __future__ import annotations

import dataclasses

from compression.space import Point
from search.errors import ProblemInvalid
from search.history import canonical, generator
from search.point_agent import PointAgent
from search.problem import Problem
from search.repair import as_point
from search.sampling import draw, new_point

DRAWS = 16
"""Draws per request, of which the first that is new and keeps the bounds is asked for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of random search.

    Attributes:
        fill: Share of the draws that is grown until an arithmetic bound is met, in [0, 1]; the
            others keep their size.
    """

    fill: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.fill <= 1.0:
            raise ProblemInvalid(f"random: fill is {self.fill}; it must be in [0, 1]")


class Random(PointAgent):
    """Draws plans at random; the honest baseline of every clever agent."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem)
        self._options = options

    def _suggest(self) -> Point | None:
        rng = generator(self._problem, self._history.asked)
        grow = rng.random() < self._options.fill
        drawn = draw(self._problem.space, rng, DRAWS)
        # Draws that keep the bounds as they are come first: shrunk ones all lie at the bound.
        batches = [self._repair.fill(drawn)] if grow else [drawn, self._repair.shrink(drawn)]
        for batch in batches:
            for row in batch[self._repair.keeps_bounds(batch)]:
                if self._history.is_new(row):
                    return canonical(self._problem.space, as_point(row))
        return new_point(self._repair, self._history, rng)
