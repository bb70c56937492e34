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
from typing import TYPE_CHECKING

from search.errors import ProblemInvalid
from search.optuna_study import SamplerAgent
from search.problem import Problem

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


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


class Tpe(SamplerAgent):
    """Models where good and bad plans lie (Parzen estimators) and asks where good ones prevail."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem, startup_trials=options.startup_trials)
        self._options = options

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=0, n_ei_candidates=self._options.candidates, seed=seed)
