"""Gaussian processes for the loss and every constraint, by Optuna's sampler.

Reference:
    J. Snoek, H. Larochelle, R. Adams: Practical Bayesian Optimization of Machine Learning
    Algorithms, NeurIPS 2012; constraints as in J. Gardner et al.: Bayesian Optimization with
    Inequality Constraints, ICML 2014; several objectives by expected hypervolume improvement as
    in S. Daulton et al., NeurIPS 2020. The sampler is Optuna's `GPSampler`.

Deviations:
    * The first trials are a design of uniform and Sobol points of differing size.
    * Suggestions that break a bound on macs, flops or params are shrunk to it before they are
      asked for, and enter the history as applied.
    * No plan is asked for twice: repeated suggestions are drawn once more, then moved by one step.
    * Ordered knobs and switches are real numbers to the processes, rounded when asked for:
      gradients climb the acquisition, where Optuna would try the choices of integers one by one.
    * The acquisition is looked up at, and climbed from, fewer points than Optuna's 2,048 and 10.
      Together that asks in a tenth of the time.
    * Nothing is warped and no cost enters the processes: this is the stock optimiser, beside which
      `cbo` has to show what its additions are worth.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from compression.space import Point
from search.errors import ProblemInvalid
from search.one_thread import one_thread
from search.optuna_study import SamplerAgent
from search.problem import Problem

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

REDRAWS = 2
"""Suggestions drawn per request; each fits the processes anew."""

LOOKED_UP, CLIMBED, TOLERANCE = 512, 4, 0.01
"""Points at which the acquisition is looked up, of which so many are climbed from, and how flat it
may be at the end (Optuna: 0.0001)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the stock Gaussian-process sampler.

    Attributes:
        startup_trials: Trials of the design before the processes speak, at least 2.
        deterministic: Whether readings are taken to be free of noise.
    """

    startup_trials: int = 10
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.startup_trials < 2:
            raise ProblemInvalid(f"gp: startup_trials is {self.startup_trials}; at least 2")


class Gp(SamplerAgent):
    """Models loss and bounds by stock Gaussian processes and asks where improvement is likely."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(
            problem, startup_trials=options.startup_trials, tries=REDRAWS, relaxed=True
        )
        self._options = options

    def _suggest(self) -> Point | None:
        # Where one place alone is promising, Optuna divides the chances of the others by zero.
        with one_thread(), np.errstate(invalid="ignore"):
            return super()._suggest()

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        sampler = GPSampler(
            n_startup_trials=0, deterministic_objective=self._options.deterministic, seed=seed
        )
        # It has no options for these.
        sampler._n_preliminary_samples = LOOKED_UP
        sampler._n_local_search = CLIMBED
        sampler._tol = TOLERANCE
        return sampler
