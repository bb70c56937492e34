"""How a bound tightens from the dense model's value to the target, step by step.

Reference:
    C. Chen, F. Tung, N. Vedula, G. Mori: Constraint-Aware Deep Neural Network Compression, ECCV
    2018; schedules as in the authors' code.
"""

from __future__ import annotations

import math
from typing import Literal

from search.errors import ProblemInvalid

Schedule = Literal["exponential", "linear", "one_step"]
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
