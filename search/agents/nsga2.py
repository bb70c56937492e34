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
from collections.abc import Sequence

from compression.space import Point
from search.agent import Request, Snapshot
from search.errors import ProblemInvalid
from search.history import History, fill, generator
from search.optuna_study import build, suggest
from search.problem import Problem
from search.repair import Repair
from search.sampling import design, new_point
from search.trial import Trial


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

    population_size: int | None = None
    crossover_probability: float = 0.9
    mutation_probability: float | None = None

    def __post_init__(self) -> None:
        if self.population_size is not None and self.population_size < 4:
            raise ProblemInvalid(f"nsga2: population_size is {self.population_size}; at least 4")
        for name in ("crossover_probability", "mutation_probability"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ProblemInvalid(f"nsga2: {name} is {value}; it must be in [0, 1]")


class Nsga2:
    """Breeds plans by crossover and mutation and keeps the feasible, undominated ones."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._history = History(problem)
        self._repair = Repair(problem)
        self._population_size = options.population_size or min(
            32, max(8, (problem.budget_trials or 60) // 5)
        )
        self._design = design(self._repair, problem.seed, self._population_size)

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; fewer when the space is exhausted."""
        return fill(self._history, n, self._suggest)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials."""
        self._history.tell(trials)

    def snapshot(self) -> Snapshot:
        """Return the count and the pending points."""
        return self._history.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._history.restore(snapshot)

    def _suggest(self) -> Point | None:
        from optuna.samplers import NSGAIISampler

        history = self._history
        rng = generator(self._problem, history.asked)
        if history.asked < self._population_size:
            for point in self._design:
                if history.is_new(point):
                    return point
        if len(history.measured) < self._population_size:
            return new_point(self._repair, history, rng)
        sampler = NSGAIISampler(
            population_size=self._population_size,
            crossover_prob=self._options.crossover_probability,
            mutation_prob=self._options.mutation_probability,
            seed=int(rng.integers(2**31)),
        )
        study = build(self._problem, history, sampler, generation_size=self._population_size)
        found, drawn = suggest(study, self._repair, history)
        return found or new_point(self._repair, history, rng, near=drawn)
