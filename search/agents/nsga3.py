"""NSGA-III: a population that breeds, ranked by feasibility, dominance and reference directions.

Reference:
    K. Deb, H. Jain: An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-
    Based Nondominated Sorting Approach, IEEE Transactions on Evolutionary Computation 18(4), 2014,
    parts I and II (constraints). The sampler is Optuna's `NSGAIIISampler`.

Deviations:
    * The first generation is a design of uniform and Sobol points of differing size.
    * Generations are counted over the measured trials in the order of proposal, not in the order
      of finishing; breeding goes on while the last members of a generation are still measured.
    * Children that break a bound on macs, flops or params are shrunk to it and enter the history
      as applied: what arithmetic decides needs no trial.
    * No plan is asked for twice: repeated children are bred again, then moved by one step.
    * With one objective every plan lies in one direction, and what is left is selection by
      dominance: NSGA-II without crowding. It is meant for three objectives and more.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from search.agents import nsga2
from search.errors import ProblemInvalid
from search.optuna_study import SamplerAgent, generation_size
from search.problem import Problem

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options(nsga2.Options):
    """Options of NSGA-III.

    Attributes:
        population_size: As of NSGA-II.
        crossover_probability: As of NSGA-II.
        mutation_probability: As of NSGA-II.
        divisions: Parts into which each axis of the objectives is divided by the reference
            directions, at least 1.
    """

    agent: ClassVar[str] = "nsga3"
    divisions: int = 3

    def __post_init__(self) -> None:
        # Dataclasses with slots are made anew, which `super()` does not notice.
        nsga2.Options.__post_init__(self)
        if self.divisions < 1:
            raise ProblemInvalid(f"nsga3: divisions is {self.divisions}; at least 1")


class Nsga3(SamplerAgent):
    """Breeds plans and keeps the undominated ones nearest to evenly spread directions."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        size = options.population_size or generation_size(problem)
        super().__init__(problem, startup_trials=size, generation_size=size)
        self._options = options
        self._population_size = size

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIIISampler

        return NSGAIIISampler(
            population_size=self._population_size,
            crossover_prob=self._options.crossover_probability,
            mutation_prob=self._options.mutation_probability,
            dividing_parameter=self._options.divisions,
            seed=seed,
        )
