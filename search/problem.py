"""Everything an agent may know before its first trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from compression.cost import CostTable
from compression.plan import Plan
from compression.space import PlanSpace
from search.measurement import Measured, Measurement, Reading
from search.metric import METRICS
from search.objective import Constraint, Objective
from search.trial import Trial


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A search as an agent sees it: no model, no data, no device.

    Attributes:
        space: Admissible plans.
        costs: Exact MACs, params and weight bytes of any plan, in microseconds.
        objectives: At least one; the first is the main one.
        constraints: All hard.
        baseline: The dense model's measurement: every metric that is named.
        budget_trials: Trials the search may take, for schedules (cooling); None if only time is
            bounded.
        seed: Of everything random in the agent.
    """

    space: PlanSpace
    costs: CostTable
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    baseline: Measurement
    budget_trials: int | None = None
    seed: int = 0

    def losses(self, measurement: Measurement) -> tuple[float, ...]:
        """Return one value to minimise per objective."""
        return tuple(objective.loss(measurement) for objective in self.objectives)

    def violations(self, measurement: Measurement) -> tuple[float, ...]:
        """Return one violation per constraint; `<= 0` is feasible."""
        return tuple(c.violation(measurement, self.baseline) for c in self.constraints)

    def total_violation(self, measurement: Measurement) -> float:
        """Return the sum of positive violations; 0 is feasible."""
        return sum(max(0.0, violation) for violation in self.violations(measurement))

    def feasible(self, measurement: Measurement) -> bool:
        """Whether every constraint holds."""
        return all(violation <= 0 for violation in self.violations(measurement))

    def arithmetic(self, plan: Plan) -> Measurement:
        """Return what arithmetic alone knows of a plan: MACs, FLOPs and params, exact."""
        cost = self.costs.cost(plan)
        values = {"macs": cost.macs, "flops": 2 * cost.macs, "params": cost.params}
        readings = []
        for metric, value in values.items():
            reference = self.baseline.get(metric)
            readings.append(
                Reading.exact(metric, float(value), reference.value if reference else None)
            )
        return Measurement(tuple(readings))

    def arithmetic_violation(self, plan: Plan) -> float:
        """Return the sum of positive violations of the bounds that arithmetic decides."""
        known = self.arithmetic(plan)
        return sum(
            max(0.0, c.violation(known, self.baseline))
            for c in self.constraints
            if METRICS[c.metric].by_cost_table
        )

    def rank_key(self, trial: Trial) -> tuple[float, float, str]:
        """Return the feasible-first order (SCBO, Eriksson & Poloczek 2021): smaller is better.

        Feasible trials by the main objective's loss, then infeasible ones by total violation,
        then those without a measurement; ties by plan digest.
        """
        if not isinstance(trial.outcome, Measured):
            return (float("inf"), 0.0, trial.plan.digest)
        measurement = trial.outcome.measurement
        excess = self.total_violation(measurement)
        return (excess, self.losses(measurement)[0], trial.plan.digest)


def best_first(problem: Problem, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials ordered by `Problem.rank_key`."""
    return sorted(trials, key=problem.rank_key)
