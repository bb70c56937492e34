"""NSGA-II: a population that breeds, ranked by feasibility, dominance and crowding.

Reference:
    K. Deb et al.: A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, IEEE Transactions
    on Evolutionary Computation 6(2), 2002, with its constrained domination. The sampler is
    Optuna's `NSGAIISampler`.

Deviations:
    * The first generation is a design of uniform and Sobol points of differing size.
    * Generations are counted over the measured trials in the order of proposal, not in the order
      of finishing; breeding goes on while the last members of a generation are still measured.
      So an agent rebuilt from its trials has the same generations.
    * Children that break a bound on macs, flops or params are shrunk to it and enter the history
      as applied: what arithmetic decides needs no trial.
    * No plan is asked for twice: repeated children are bred again, then moved by one step.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from search.errors import ProblemInvalid
from search.optuna_study import SamplerAgent, generation_size
from search.problem import Problem

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of NSGA-II.

    Attributes:
        population_size: Members of a generation, at least 4; None takes a fifth of the budget of
            trials, within 8..32.
        crossover_probability: Chance that a child has two parents, in [0, 1].
        mutation_probability: Chance that a knob of a child is drawn anew, in [0, 1]; None is one
            knob a child on average.
    """

    agent: ClassVar[str] = "nsga2"
    population_size: int | None = None
    crossover_probability: float = 0.9
    mutation_probability: float | None = None

    def __post_init__(self) -> None:
        if self.population_size is not None and self.population_size < 4:
            raise ProblemInvalid(
                f"{self.agent}: population_size is {self.population_size}; at least 4"
            )
        for name in ("crossover_probability", "mutation_probability"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ProblemInvalid(f"{self.agent}: {name} is {value}; it must be in [0, 1]")


class Nsga2(SamplerAgent):
    """Breeds plans by crossover and mutation and keeps the feasible, undominated ones."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        size = options.population_size or generation_size(problem)
        super().__init__(problem, startup_trials=size, generation_size=size)
        self._options = options
        self._population_size = size

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(
            population_size=self._population_size,
            crossover_prob=self._options.crossover_probability,
            mutation_prob=self._options.mutation_probability,
            seed=seed,
        )
