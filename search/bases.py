"""The networks that a search starts from, when the best of each stage is trained and goes on.

A stage ends when everything asked for was told: its best plan is ordered as a preparation, and
where that succeeds, what follows starts from the trained network and is never wider.

Reference:
    C. Chen, F. Tung, N. Vedula, G. Mori: Constraint-Aware Deep Neural Network Compression, ECCV
    2018, section 3: the model of step t is the fine-tuned best of step t - 1.

Deviations:
    * Only the channels of the best plan are taken away before the training, since what else a plan
      does must be decided anew for the deployed network.
    * A plan is asked for once, whichever network it starts from.
    * When the training fails, or nothing was measured, the search goes on from where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compression.artifact import Digest
from compression.decisions import PruneChannels
from compression.plan import Plan
from compression.space import Point
from search.agent import Prepare, Snapshot
from search.arithmetic import Points
from search.history import History, plan_count
from search.measurement import Measured
from search.problem import Problem
from search.trial import PREPARED_ROLE, Fidelity, Preparation, Trial

FEW = 3
"""Measured trials from which on a new network's own observations are learnt from."""


class BaseHistory(History):
    """The history of one base; a plan that was asked of any other is not new here."""

    def __init__(
        self, problem: Problem, base: Digest | None, family: dict[Digest | None, BaseHistory]
    ) -> None:
        """Join the histories of `family`."""
        super().__init__(problem, base=base)
        self._family = family

    def is_new(self, point: Sequence[int]) -> bool:
        """Whether the plan at `point` was neither asked for nor told, on any base."""
        return all(History.is_new(history, point) for history in self._family.values())

    @property
    def seen(self) -> set[Point]:
        """Points asked for or told here."""
        return {*self._pending, *self._points}


@dataclasses.dataclass(frozen=True)
class Order:
    """A stage's end: what was ordered, or nothing because there was nothing to train."""

    plan: Plan | None
    base: Digest | None


class Bases:
    """One history per base, the orders between them, and which base is the present one."""

    def __init__(self, problem: Problem, training: Mapping[str, Any]) -> None:
        """Start from the job's model.

        Args:
            problem: Its space names the points.
            training: Options of the preparations.
        """
        self._problem = problem
        self._preparation = Preparation(kind="finetune", options=dict(training))
        self._histories: dict[Digest | None, BaseHistory] = {}
        self._orders: dict[int, Order] = {}
        self._prepared: dict[tuple[str, Digest | None], Trial] = {}
        self._history(None)

    def _history(self, base: Digest | None) -> BaseHistory:
        if base not in self._histories:
            self._histories[base] = BaseHistory(self._problem, base, self._histories)
        return self._histories[base]

    def _result(self, order: Order) -> Trial | None:
        if order.plan is None:
            return None
        return self._prepared.get((order.plan.digest, order.base))

    @property
    def _chain(self) -> list[tuple[Digest | None, Plan]]:
        """The bases in order of their making and the widths they have."""
        chain: list[tuple[Digest | None, Plan]] = [(None, Plan())]
        for stage in sorted(self._orders):
            order, trial = self._orders[stage], self._result(self._orders[stage])
            if trial is None or order.plan is None or not isinstance(trial.outcome, Measured):
                continue
            realised = trial.outcome.found.get("plan")
            plan = order.plan if realised is None else Plan.from_json(realised)
            if PREPARED_ROLE in trial.artifacts:
                chain.append((trial.artifacts[PREPARED_ROLE], plan))
        return chain

    @property
    def dense(self) -> BaseHistory:
        """Of the job's model."""
        return self._history(None)

    @property
    def present(self) -> BaseHistory:
        """Of the base that the next request starts from."""
        return self._history(self._chain[-1][0])

    @property
    def learning(self) -> BaseHistory:
        """Of the newest base that enough is known of."""
        for base, _ in reversed(self._chain):
            history = self._history(base)
            if base is None or len(history.measured) >= FEW:
                return history
        return self.dense

    @property
    def every(self) -> list[BaseHistory]:
        """Of all bases, in order of their making."""
        return [self._history(base) for base, _ in self._chain]

    @property
    def widest(self) -> Points:
        """For each knob the choice that no plan on the present base exceeds."""
        kept = self._chain[-1][1].prune_channels()
        limits = []
        for knob in self._problem.space.knobs:
            most = len(knob.choices) - 1
            if knob.field == "keep_channels" and knob.site in kept:
                width = kept[knob.site].keep_channels
                most = max(0, sum(int(choice) <= width for choice in knob.choices) - 1)
            limits.append(most)
        return np.array(limits, dtype=np.int64)

    @property
    def asked(self) -> int:
        """Evaluations asked for so far."""
        return sum(history.asked for history in self._histories.values())

    @property
    def pending(self) -> list[Point]:
        """Points under way, on any base."""
        return [point for history in self.every for point in history.pending]

    @property
    def exhausted(self) -> bool:
        """Whether no plan is left."""
        return len(self.taken) >= plan_count(self._problem.space)

    @property
    def taken(self) -> set[Point]:
        """Points asked for or told, on any base."""
        return set[Point]().union(*(history.seen for history in self._histories.values()))

    @property
    def waiting(self) -> bool:
        """Whether a preparation is under way."""
        return any(o.plan is not None and self._result(o) is None for o in self._orders.values())

    def closed(self, stage: int) -> bool:
        """Whether the end of `stage` or of a later one was dealt with."""
        return any(number >= stage for number in self._orders)

    def close(self, stage: int, best: Sequence[int] | None) -> Prepare | None:
        """End a stage whose best point is `best`; return the order, if there is one to make."""
        plan = None if best is None else self._widths(best)
        base = self._chain[-1][0]
        known = plan is not None and (plan.digest, base) in self._prepared
        if plan is None or known or any(o == Order(plan, base) for o in self._orders.values()):
            self._orders[stage] = Order(None, base)
            return None
        self._orders[stage] = Order(plan, base)
        return Prepare(
            kind=self._preparation.kind, plan=plan, base=base, options=self._preparation.options
        )

    def _widths(self, point: Sequence[int]) -> Plan | None:
        """Return what a plan does to channels alone; None where it does nothing to them."""
        plan = self._problem.space.decode(point)
        widths = {
            site: [decision] for site, decision in plan if isinstance(decision, PruneChannels)
        }
        return Plan.of(widths) if widths else None

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take in finished trials, evaluations and preparations, in any order."""
        for trial in trials:
            if trial.fidelity is Fidelity.PROXY and trial.preparation is None:
                self._history(trial.base).tell([trial])
            elif trial.preparation == self._preparation:
                self._prepared[trial.plan.digest, trial.base] = trial

    def snapshot(self) -> Snapshot:
        """Return counts, pending points and orders."""
        first = self.dense.snapshot()
        arrays = dict(first.arrays)
        asked = {}
        for base, history in self._histories.items():
            if base is not None and (history.asked or history.pending):
                asked[base] = history.snapshot().data["asked"]
                arrays[f"pending_{base}"] = history.snapshot().arrays["pending"]
        orders = {
            str(stage): {"plan": o.plan.to_json() if o.plan else None, "base": o.base}
            for stage, o in self._orders.items()
        }
        return Snapshot({**first.data, "bases": asked, "orders": orders}, arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up a snapshot, before any trial is told."""
        self.dense.restore(snapshot)
        for base, asked in snapshot.data.get("bases", {}).items():
            part = {"pending": snapshot.arrays[f"pending_{base}"]}
            data = {**snapshot.data, "asked": asked}
            self._history(Digest(base)).restore(Snapshot(data, part))
        for stage, fields in snapshot.data.get("orders", {}).items():
            plan = Plan.from_json(fields["plan"]) if fields["plan"] is not None else None
            self._orders[int(stage)] = Order(plan, fields["base"])
