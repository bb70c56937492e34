"""How a bound tightens from the dense model's value to the target, step by step.

Reference:
    C. Chen, F. Tung, N. Vedula, G. Mori: Constraint-Aware Deep Neural Network Compression, ECCV
    2018; schedules as in the authors' code.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from search.arithmetic import Floats
from search.errors import ProblemInvalid
from search.problem import Problem

Schedule = Literal["exponential", "linear", "one_step"]
ROUNDING = 1e-9
"""Of trials and steps, below which a step has ended."""

SCHEDULES: tuple[Schedule, ...] = ("exponential", "linear", "one_step")


def cooled(
    schedule: Schedule, start: float, target: float, *, step: int, steps: int, rate: float = 0.5
) -> float:
    """Return the bound at one step; at the last step it is `target` exactly.

    Written as `target + heat * (start - target)` with the heat falling to 0:

    * linear: heat = 1 - t / T;
    * exponential (Newton's law of cooling): heat = exp(-k t) - exp(-k T);
    * one_step: heat = 0.

    Args:
        schedule: Name of the law.
        start: The dense model's value L0.
        target: The bound C that must hold in the end.
        step: t in 1..steps; beyond the last the target holds.
        steps: T, at least 1.
        rate: k of the exponential law, per step; positive.

    Raises:
        ProblemInvalid: An argument is out of range.

    >>> [round(cooled("linear", 238, 80, step=t, steps=5), 1) for t in (1, 5)]
    [206.4, 80.0]
    """
    if schedule not in SCHEDULES:
        raise ProblemInvalid(f"Cooling is {schedule!r}; choose from {', '.join(SCHEDULES)}")
    if steps < 1 or step < 1:
        raise ProblemInvalid(f"Cooling step {step} of {steps}: both must be at least 1")
    if not rate > 0:
        raise ProblemInvalid(f"Cooling rate is {rate}; it must be positive")
    if schedule == "one_step" or step >= steps:
        return target
    if schedule == "linear":
        heat = 1.0 - step / steps
    else:
        heat = math.exp(-rate * step) - math.exp(-rate * steps)
    return target + heat * (start - target)


class Cooling:
    """The bounds of a search, request by request: loose at first, the targets in the end."""

    def __init__(
        self,
        problem: Problem,
        schedule: Schedule,
        *,
        steps: int,
        rate: float,
        startup: int,
        share: float,
    ) -> None:
        """Prepare.

        Args:
            problem: Constraints, dense baseline, and trials the search may take.
            schedule: Name of the law.
            steps: T, at least 1.
            rate: k of the exponential law.
            startup: Trials before the first step ends; they belong to it.
            share: Of the trials after those, spent before the last step; in [0, 1).
        """
        self._schedule = schedule
        self._steps = steps
        self._rate = rate
        self._startup = startup
        budget = problem.budget_trials or 4 * startup
        self._loose = share * max(0, budget - startup)
        self._heat = np.array(
            [max(0.0, c.violation(problem.baseline, problem.baseline)) for c in problem.constraints]
        )

    def step(self, asked: int) -> int:
        """Return the step, 1..T, of the request after `asked` others."""
        beyond = asked - self._startup
        if self._steps == 1 or beyond >= self._loose - ROUNDING:
            return self._steps
        if beyond <= 0:
            return 1
        done = beyond / self._loose * (self._steps - 1)
        return 1 + int(done + ROUNDING)

    def slack(self, step: int) -> Floats:
        """Return the violation that a step still allows, one per constraint.

        A violation is an affine function of its metric, so cooling it from the dense model's to 0
        is cooling the bound from the dense value to the target. Bounds that the dense model keeps
        are not cooled.
        """
        heat = cooled(self._schedule, 1.0, 0.0, step=step, steps=self._steps, rate=self._rate)
        return np.asarray(self._heat * heat)
