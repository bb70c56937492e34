"""What a job's trials have taught of latency, and which proposals are hopeless by it.

The proxies that other jobs measured on the same device are trials of this one already, where its
memory is on (`Ledger.warm_start`): a book that is told every finished trial knows of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from compression.cost import CostTable
from search.latency.model import LatencyModel
from search.latency.observation import Observation, observed
from search.measurement import Infeasible, Measurement
from search.objective import Constraint
from search.trial import Fidelity, Trial

PRUNED = "trial.pruned"
"""Kind of the event that a trial was not carried out, because it was hopeless."""


@dataclasses.dataclass(slots=True)
class _Bound:
    """One bound on latency, and what is known of its device."""

    constraint: Constraint
    known: list[Observation]
    model: LatencyModel
    fitted: int = 0


class LatencyBook:
    """Foretells which proposals miss a bound on latency; told of every finished trial.

    What it says is a function of the job's recorded trials in their order, so that a job that is
    resumed decides alike. Bounds on estimates (`virtual/...`) need no foretelling.
    """

    def __init__(
        self, costs: CostTable, constraints: Sequence[Constraint], baseline: Measurement
    ) -> None:
        """Start without observations.

        Args:
            costs: Of the job's model.
            constraints: Of the job; those that bound the latency of a device from above count.
            baseline: The dense model's readings, for bounds in milliseconds.
        """
        self._costs = costs
        self._baseline = baseline
        self._bounds = [
            _Bound(constraint, [], LatencyModel(costs, ()))
            for constraint in constraints
            if constraint.metric == "latency_ms" and constraint.at_most is not None
        ]

    def learn(self, trial: Trial) -> None:
        """Take in a finished trial."""
        for bound in self._bounds:
            device, statistic = bound.constraint.device, bound.constraint.statistic
            assert device is not None
            assert statistic is not None
            found = observed(trial, device, statistic)
            if found is not None:
                bound.known.append(found)

    def hopeless(self, trial: Trial) -> Infeasible | None:
        """Return why a proposed trial need not be measured; None where it must be.

        It need not where the lower end of the predicted interval misses a bound, which happens to
        about one in a hundred trials that would hold it. Only proxies of the job's own model are
        judged, and only by calibrated predictions.
        """
        if trial.fidelity is not Fidelity.PROXY or trial.base is not None:
            return None
        if not trial.plan.decisions:
            return None
        self._refit()
        for bound in self._bounds:
            foretold = bound.model.foretell(trial.plan)
            if foretold is None or not foretold.calibrated:
                continue
            limit = self._limit(bound)
            if foretold.ratio.low > limit:
                value, low, high = (f"{v:.3f}" for v in dataclasses.astuple(foretold.ratio))
                return Infeasible(
                    f"Predicted {bound.constraint.key} is {value} of the dense model's "
                    f"(97.5 % interval {low} to {high}, from {bound.fitted} readings), "
                    f"above the bound of {limit:.3f}: not measured",
                    foretold=True,
                )
        return None

    def _limit(self, bound: _Bound) -> float:
        """Return the bound as a share of the dense model's latency, at its most generous."""
        constraint = bound.constraint
        assert constraint.at_most is not None
        if constraint.relative_to == "baseline":
            return constraint.at_most
        # The dense model is slower on a loaded machine: milliseconds are held against its best.
        reading = constraint.reading(self._baseline)
        dense_ms = min(bound.model.fastest_dense_ms, reading.value if reading else float("inf"))
        return constraint.limit(self._baseline) / dense_ms

    def _refit(self) -> None:
        """Fit anew for every twentieth part of the readings that is new.

        How many are looked at follows from how many there are, not from when it is asked.
        """
        for bound in self._bounds:
            count = len(bound.known)
            count -= count % max(1, count // 20)
            if count != bound.fitted:
                bound.model = LatencyModel(self._costs, bound.known[:count])
                bound.fitted = count
