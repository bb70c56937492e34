"""The tree-structured Parzen estimator, with constraints and several objectives.

Reference:
    J. Bergstra et al.: Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; constraints as
    in S. Watanabe, F. Hutter: c-TPE, IJCAI 2023; several objectives as in Y. Ozaki et al.:
    Multiobjective Tree-Structured Parzen Estimator, JAIR 2022. The sampler is Optuna's
    `TPESampler`.

Deviations:
    * The first trials are a design of uniform and Sobol points of differing size, not independent
      random draws.
    * Suggestions that break a bound on macs, flops or params are shrunk to it before they are
      asked for, and enter the history as applied: what arithmetic decides needs no trial.
    * No plan is asked for twice: repeated suggestions are drawn again, then moved by one step.
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
    """Options of TPE.

    Attributes:
        startup_trials: Trials of the design before the estimator speaks, at least 2.
        candidates: Draws from the estimator of good points, of which the best is asked for.
    """

    startup_trials: int = 10
    candidates: int = 24

    def __post_init__(self) -> None:
        if self.startup_trials < 2:
            raise ProblemInvalid(f"tpe: startup_trials is {self.startup_trials}; at least 2")
        if not 1 <= self.candidates <= 10_000:
            raise ProblemInvalid(f"tpe: candidates is {self.candidates}; 1..10000 is allowed")


class Tpe:
    """Models where good and bad plans lie (Parzen estimators) and asks where good ones prevail."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem = problem
        self._options = options
        self._history = History(problem)
        self._repair = Repair(problem)
        self._design = design(self._repair, problem.seed, options.startup_trials)

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
        from optuna.samplers import TPESampler

        history = self._history
        rng = generator(self._problem, history.asked)
        if history.asked < self._options.startup_trials:
            for point in self._design:
                if history.is_new(point):
                    return point
        if len(history.measured) < 2:
            return new_point(self._repair, history, rng)
        sampler = TPESampler(
            n_startup_trials=0,
            n_ei_candidates=self._options.candidates,
            seed=int(rng.integers(2**31)),
        )
        study = build(self._problem, history, sampler)
        found, drawn = suggest(study, self._repair, history)
        return found or new_point(self._repair, history, rng, near=drawn)
