"""What an episode of AMC earns.

Reference:
    Y. He et al.: AMC, ECCV 2018, section 3.4: R = -Error under a budget that the clamp keeps, and
    R = -Error * log(FLOPs) (or of parameters) where the accuracy is to be guaranteed.

Deviations:
    * The error is that of the main objective: one minus it for accuracies, else the ratio to the
      dense model's value that is wanted small.
    * Measured bounds (latency, bytes, floors) cannot be clamped: their violations are added to the
      error, logarithmically, so that a bound far out of reach does not drown the accuracy.
    * A plan that cannot be evaluated earns what a network earns that is always wrong and misses
      each measured bound by its whole size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from compression.plan import Plan
from search.measurement import Measurement
from search.metric import ACCURACIES, METRICS
from search.problem import Problem

Mode = Literal["budget", "guarantee"]
Size = Literal["macs", "params"]

ALWAYS_WRONG = 1.0
"""Error of a plan that cannot be evaluated."""

MISSED = 1.0
"""Violation of each measured bound by a plan that cannot be evaluated: the bound's whole size."""


def mode_for(problem: Problem) -> Mode:
    """Return `budget` where something that costs is bounded, else `guarantee`.

    Without such a bound the error alone would reward the dense model.
    """
    costs = [c for c in problem.constraints if c.metric not in ACCURACIES]
    return "budget" if costs else "guarantee"


def error(problem: Problem, measurement: Measurement) -> float:
    """Return what is lost on the main objective, 0 at best; 1 is the dense model's other cost.

    Raises:
        ProblemInvalid: The measurement lacks the reading.
    """
    objective = problem.objectives[0]
    loss = objective.loss(measurement)
    if objective.metric in ACCURACIES:
        return 1.0 + loss if objective.direction == "maximize" else loss
    reference = objective.reading(problem.baseline)
    dense = abs(reference.value) if reference is not None else 1.0
    if objective.direction == "minimize":
        return loss / (dense or 1.0)
    return dense / max(-loss, 1e-9)


@dataclasses.dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a plan; larger is better, never positive while the error is not negative.

    Attributes:
        problem: Names the objective and the bounds.
        mode: `budget`: R = -E. `guarantee`: R = -E * ln(size).
        size: Which size `guarantee` weighs.
        penalty: Error added per unit of log(1 + violation) of a measured bound.
    """

    problem: Problem
    mode: Mode
    size: Size = "macs"
    penalty: float = 1.0

    def of(self, plan: Plan, measurement: Measurement | None) -> float:
        """Return the reward of a plan.

        Args:
            plan: What was tried.
            measurement: What was measured; None where the plan cannot be evaluated.
        """
        measured = [c for c in self.problem.constraints if not METRICS[c.metric].by_cost_table]
        if measurement is None:
            lost = ALWAYS_WRONG
            missed = [MISSED] * len(measured)
        else:
            lost = error(self.problem, measurement)
            missed = [c.violation(measurement, self.problem.baseline) for c in measured]
        lost += self.penalty * sum(math.log1p(max(0.0, violation)) for violation in missed)
        if self.mode == "budget":
            return -lost
        cost = self.problem.costs.cost(plan)
        return -lost * math.log(max(2, cost.macs if self.size == "macs" else cost.params))
