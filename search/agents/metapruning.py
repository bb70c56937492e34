"""MetaPruning: evolution over widths, scored with generated or shared weights.

One long training comes first: of a PruningNet or of a slimmable supernet, which hands out weights
for any widths. Every plan is then scored from it, and the best ones have children.

Reference:
    Z. Liu et al.: MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning, ICCV
    2019, https://arxiv.org/abs/1903.10258, algorithm 1 (evolution under hard constraints) and its
    published code (mutation, crossover, numbers). Shared weights: J. Yu, T. Huang: Universally
    Slimmable Networks and Improved Training Techniques, ICCV 2019.

Deviations:
    * The PruningNet adds what it generates to the trained weights (`compression.supernets`). It has
      33 weights for each one of the model's: for larger models shared weights under the sandwich
      rule take its place.
    * Steady state: a child has its parents among the best of all trials told so far, so that no
      worker waits for the end of a generation. Mutants and crossovers alternate. The paper's
      numbers are `population_size=50`, `parents=10` and a budget of 1,000 trials.
    * The first population is a design of uniform and Sobol points of differing size that keeps
      the bounds, not uniform draws of which most are refused.
    * Bounds on macs, flops and params refuse children before any trial, as the paper's do on
      FLOPs. Measured bounds (time, size) order the parents: those that hold them come first.
    * Where arithmetic decides all bounds on cost, children are grown to them by one factor before
      they are refused or taken: the paper sets a lower bound on FLOPs for the same end.
    * Decisions other than widths are genes, too. Selectors are not: the order of channels is that
      of the trained supernet, whichever selector a plan names.
    * When the training fails, plans are scored with the weights of the job's model.
    * The winner is recovered from the supernet's weights, not trained from scratch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from compression.artifact import Digest
from compression.plan import Plan
from compression.space import Point
from search.agent import Prepare, Request, Snapshot
from search.arithmetic import Points, as_points
from search.errors import ProblemInvalid
from search.history import History, fill, generator
from search.measurement import Measured
from search.metric import ACCURACIES, METRICS
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import design, new_point
from search.trial import PREPARED_ROLE, Fidelity, Trial

Generator = Literal["supernet", "pruning_net"]
GENERATORS: tuple[Generator, ...] = ("supernet", "pruning_net")

LARGEST = 3_000_000
"""Parameters of a model up to which a PruningNet is trained."""

TRIES = 10
"""Batches of children that are bred for one request before a random plan takes its place."""

BROOD = 64
"""Children of one batch."""

STEPS_PER_TRIAL = 15
LEAST_STEPS = 300
MOST_STEPS = 1500


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of MetaPruning.

    Attributes:
        generator: Whose weights plans are scored with: `pruning_net` or `supernet`; None takes
            the former for models of up to 3,000,000 parameters.
        steps: Of its training, at least 1; None takes 15 for every trial of the budget, within
            300..1500.
        learning_rate: Of its training, greater than 0; None takes the preparation's own.
        population_size: Plans before the first child, at least 2; None takes a third of the
            budget of trials, within 8..20.
        parents: How many of the best trials have children, at least 2; None takes a fifth of
            the population, at least 4.
        mutation_probability: Chance that a gene of a mutant changes, in (0, 1].
    """

    generator: Generator | None = None
    steps: int | None = None
    learning_rate: float | None = None
    population_size: int | None = None
    parents: int | None = None
    mutation_probability: float = 0.1

    def __post_init__(self) -> None:
        if self.generator is not None and self.generator not in GENERATORS:
            raise ProblemInvalid(
                f"metapruning: generator is {self.generator!r}; one of {', '.join(GENERATORS)}"
            )
        for name, least in (("steps", 1), ("population_size", 2), ("parents", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ProblemInvalid(f"metapruning: {name} is {value}; at least {least}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ProblemInvalid(
                f"metapruning: learning_rate is {self.learning_rate}; it must be greater than 0"
            )
        if not 0.0 < self.mutation_probability <= 1.0:
            raise ProblemInvalid(
                f"metapruning: mutation_probability is {self.mutation_probability}; "
                "it must be in (0, 1]"
            )


class Metapruning:
    """Trains one network that holds all widths, then breeds widths that score well in it."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._repair = Repair(problem)
        self._genes = [
            number for number, knob in enumerate(problem.space.knobs) if knob.field != "selector"
        ]
        trials = problem.budget_trials
        self.population_size = options.population_size or min(20, max(8, (trials or 60) // 3))
        self.parents = options.parents or max(4, self.population_size // 5)
        self._mutation_probability = options.mutation_probability
        self._grows = all(
            METRICS[c.metric].by_cost_table or c.metric in ACCURACIES for c in problem.constraints
        )
        self._design = design(self._repair, problem.seed, self.population_size)
        self.order = _order(problem, options)
        """The training; None where no width is to be chosen."""
        self._ordered = False
        self._settled = self.order is None
        self._base: Digest | None = None
        self._history = History(problem)
        self._told: dict[str, Trial] = {}

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; none while the training runs."""
        if self._settled:
            return fill(self._history, n, self._suggest)
        if self._ordered:
            return []
        self._ordered = True
        assert self.order is not None
        return [self.order]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials."""
        self._told.update({trial.id: trial for trial in trials})
        for trial in trials:
            if not self._settled and self._is_ours(trial):
                self._settle(trial.artifacts.get(PREPARED_ROLE))
        if self._settled:
            self._history.tell(trials)

    def snapshot(self) -> Snapshot:
        """Return where the training stands, the count and the pending points."""
        inner = self._history.snapshot()
        state = {"ordered": self._ordered, "settled": self._settled, "base": self._base}
        return Snapshot({**inner.data, **state}, inner.arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._ordered = bool(snapshot.data["ordered"])
        if snapshot.data["settled"] and self.order is not None:
            base = snapshot.data["base"]
            self._settle(None if base is None else Digest(base))
        self._history.restore(snapshot)

    def _is_ours(self, trial: Trial) -> bool:
        """Whether a trial is the training that this agent orders, whoever asked for it."""
        return (
            self.order is not None
            and trial.preparation is not None
            and trial.fidelity is Fidelity.PREPARED
            and trial.base is None
            and trial.plan.digest == self.order.plan.digest
            and trial.preparation.key == self.order.preparation.key
        )

    def _settle(self, base: Digest | None) -> None:
        """Score all plans from `base` on; trials that were told before count, too."""
        self._settled, self._base = True, base
        self._history = History(self._problem, base=base)
        self._history.tell(list(self._told.values()))

    def _suggest(self) -> Point | None:
        history = self._history
        rng = generator(self._problem, history.asked)
        if history.asked < self.population_size:
            for point in self._design:
                if history.is_new(point):
                    return point
            return new_point(self._repair, history, rng)
        best = self._best()
        for _ in range(TRIES if best else 0):
            if history.asked % 2 and len(best) > 1:
                children = self.crossovers(best, rng)
            else:
                children = self.mutants(best, rng)
            if self._grows:
                children = self._repair.fill(children)
            for child in children[self._repair.keeps_bounds(children)]:
                if history.is_new(child):
                    return self._problem.space.canonical(as_point(child))
        return new_point(self._repair, history, rng, near=best)

    def _best(self) -> list[Point]:
        measured = [t for t in self._history.told if isinstance(t.trial.outcome, Measured)]
        measured.sort(key=lambda told: self._problem.rank_key(told.trial))
        return [told.point for told in measured[: self.parents]]

    def mutants(self, parents: Sequence[Point], rng: np.random.Generator) -> Points:
        """Return `BROOD x d` children of one parent each, whose genes change now and then.

        A gene that changes takes any of its other choices, all equally likely.
        """
        knobs = self._problem.space.knobs
        children = as_points(parents, len(knobs))[rng.integers(len(parents), size=BROOD)]
        for number in self._genes:
            choices = len(knobs[number].choices)
            if choices < 2:
                continue
            changes = rng.random(BROOD) < self._mutation_probability
            shift = np.where(changes, rng.integers(1, choices, size=BROOD), 0)
            children[:, number] = (children[:, number] + shift) % choices
        return children

    def crossovers(self, parents: Sequence[Point], rng: np.random.Generator) -> Points:
        """Return `BROOD x d` children that have each gene of one of two different parents."""
        pairs = np.array([rng.permutation(len(parents))[:2] for _ in range(BROOD)])
        points = as_points(parents, len(self._problem.space.knobs))
        first = rng.random((BROOD, points.shape[1])) < 0.5
        return np.asarray(np.where(first, points[pairs[:, 0]], points[pairs[:, 1]]))


def _order(problem: Problem, options: Options) -> Prepare | None:
    """Return the order of the training: at exactly the widths that the space has."""
    choices = {
        knob.site: [int(choice) for choice in knob.choices]
        for knob in problem.space.knobs
        if knob.field == "keep_channels" and len(knob.choices) > 1
    }
    if not choices:
        return None
    trials = problem.budget_trials or MOST_STEPS // STEPS_PER_TRIAL
    scaled = min(MOST_STEPS, max(LEAST_STEPS, STEPS_PER_TRIAL * trials))
    wanted: dict[str, Any] = {"steps": options.steps or scaled, "choices": choices}
    if options.learning_rate is not None:
        wanted["learning_rate"] = options.learning_rate
    small = problem.costs.cost(Plan()).params <= LARGEST
    kind = options.generator or ("pruning_net" if small else "supernet")
    return Prepare(kind=kind, plan=Plan(), options=wanted)
