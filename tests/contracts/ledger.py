"""The laws of every `workers.ledger.Ledger`; subclass with a fixture `ledger`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from compression.artifact import Digest
from compression.decisions import PruneChannels
from compression.plan import Plan
from search.agent import Evaluate, Prepare, Request, Snapshot
from search.budget import Budget, Spent
from search.errors import IllegalTransition
from search.measurement import Failed, Infeasible, Interval, Measured, Measurement, Reading
from search.trial import (
    BASELINE_AGENT,
    MAX_ATTEMPTS,
    PREPARED_ROLE,
    Attempt,
    AttemptState,
    Fidelity,
    Preparation,
    PrepareKind,
    Trial,
    TrialState,
)
from workers import loop
from workers.executor import Finished, InlineExecutor, Work
from workers.ledger import Ledger

ONNX = Digest("a" * 64)
WEIGHTS = Digest("b" * 64)


def plan_of(keep: int) -> Plan:
    """Return a plan that is different for every number."""
    return Plan.of({"layer1": [PruneChannels(keep_channels=keep)]})


def evaluate(keep: int, fidelity: Fidelity = Fidelity.PROXY) -> Evaluate:
    """Return an order that is different for every number."""
    return Evaluate(plan=plan_of(keep), fidelity=fidelity)


def measurement(top1: float = 0.9) -> Measurement:
    """Return readings of every shape: exact, spread, timed, with ratio, with warning."""
    return Measurement(
        (
            Reading(metric="top1", value=top1, low=top1 - 0.01, high=top1, n=2000, split="search"),
            Reading.exact("macs", 12_345_678_901.0, 3.0),
            Reading(
                metric="latency_ms",
                value=0.1 + 0.2,
                low=0.25,
                high=0.35,
                n=200,
                device="local/onnxruntime",
                statistic="p50",
                ratio=Interval(value=0.5, low=0.4, high=0.6),
                warning="busy",
            ),
            Reading(
                metric="latency_ms",
                value=0.5,
                low=0.4,
                high=0.6,
                device="local/onnxruntime",
                statistic="p95",
                estimated=True,
            ),
        )
    )


def finish(
    trial: Trial,
    attempt: Attempt,
    outcome: Measured | Infeasible | Failed | None = None,
    artifacts: Mapping[str, Digest] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Finished:
    """Return what an executor reports."""
    return Finished(
        work=Work(trial=trial, attempt=attempt),
        outcome=outcome or Measured(measurement()),
        artifacts=artifacts or {},
        seconds=seconds or {"apply": 0.5, "time": 2.0},
    )


def one(ledger: Ledger, keep: int = 1, fidelity: Fidelity = Fidelity.PROXY) -> Trial:
    """Propose one trial."""
    (trial,) = ledger.propose([evaluate(keep, fidelity)], agent="sobol", snapshot=None)
    return trial


class Counter:
    """An agent that asks for keep = 1, 2, 3, ...; its snapshot is how far it came."""

    def __init__(self) -> None:
        self.asked = 0
        self.told: list[str] = []

    def ask(self, n: int) -> Sequence[Request]:
        """See `search.agent.Agent`."""
        self.asked += n
        return [evaluate(self.asked - n + 1 + i) for i in range(n)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """See `search.agent.Agent`."""
        self.told += [trial.id for trial in trials]

    def snapshot(self) -> Snapshot:
        """See `search.agent.Agent`."""
        return Snapshot({"asked": self.asked})

    def restore(self, snapshot: Snapshot) -> None:
        """See `search.agent.Agent`."""
        self.asked = snapshot.data["asked"]


class LedgerContract:
    """Every ledger keeps these."""

    def test_is_empty_at_first(self, ledger: Ledger) -> None:
        assert list(ledger.trials()) == []
        assert ledger.snapshot() is None
        assert ledger.spent() == Spent()
        assert ledger.wish() == "run"

    def test_proposals_are_numbered_and_named(self, ledger: Ledger) -> None:
        first = ledger.propose([evaluate(1), evaluate(2)], agent="sobol", snapshot=None)
        second = ledger.propose([evaluate(3)], agent="cbo", snapshot=None)
        trials = [*first, *second]
        assert [t.number for t in trials] == [0, 1, 2]
        assert [t.plan for t in trials] == [plan_of(1), plan_of(2), plan_of(3)]
        assert [t.agent for t in trials] == ["sobol", "sobol", "cbo"]
        assert {t.state for t in trials} == {TrialState.PROPOSED}
        assert len({t.id for t in trials}) == len({t.seed for t in trials}) == 3
        assert list(ledger.trials()) == trials

    def test_the_same_request_is_the_same_trial(self, ledger: Ledger) -> None:
        (first,) = ledger.propose([evaluate(1)], agent="sobol", snapshot=None)
        again = ledger.propose([evaluate(2), evaluate(1)], agent="sobol", snapshot=None)
        assert [t.number for t in again] == [1, 0]
        assert again[1] == first
        assert len(ledger.trials()) == 2

    def test_a_repeat_within_one_call_is_the_same_trial(self, ledger: Ledger) -> None:
        trials = ledger.propose([evaluate(1), evaluate(1)], agent="sobol", snapshot=None)
        assert {t.id for t in trials} == {ledger.trials()[0].id}
        assert len(ledger.trials()) == 1

    def test_fidelity_and_base_make_another_trial(self, ledger: Ledger) -> None:
        requests = [
            evaluate(1),
            evaluate(1, Fidelity.FULL),
            Evaluate(plan=plan_of(1), fidelity=Fidelity.FULL, base=WEIGHTS),
        ]
        trials = ledger.propose(requests, agent="sobol", snapshot=None)
        assert [t.number for t in trials] == [0, 1, 2]
        assert [(t.fidelity, t.base) for t in ledger.trials()] == [
            (Fidelity.PROXY, None),
            (Fidelity.FULL, None),
            (Fidelity.FULL, WEIGHTS),
        ]

    def test_a_prepared_artifact_is_a_trial_that_no_search_budget_pays(
        self, ledger: Ledger
    ) -> None:
        prepare = Prepare(kind="finetune", plan=plan_of(1), base=WEIGHTS, options={"steps": 7})
        (trial,) = ledger.propose([prepare], agent="cooling", snapshot=None)
        assert (trial.plan, trial.base) == (plan_of(1), WEIGHTS)
        assert trial.fidelity is Fidelity.PREPARED
        assert trial.preparation == Preparation(kind="finetune", options={"steps": 7})
        ledger.record(finish(trial, ledger.start(trial)))
        assert ledger.spent().trials == 0

    def test_a_preparation_is_named_by_plan_base_kind_and_options(self, ledger: Ledger) -> None:
        def order(kind: PrepareKind, steps: int, base: Digest | None = None) -> Prepare:
            return Prepare(kind=kind, plan=plan_of(1), base=base, options={"steps": steps})

        orders = [
            order("finetune", 1),
            order("finetune", 2),
            order("admm", 1),
            order("finetune", 1, WEIGHTS),
            order("finetune", 1),
        ]
        trials = ledger.propose(orders, agent="cooling", snapshot=None)
        assert [t.number for t in trials] == [0, 1, 2, 3, 0]
        again = ledger.propose(orders[:1], agent="cooling", snapshot=None)
        assert list(again) == list(ledger.trials())[:1]

    def test_what_a_preparation_found_comes_back_exactly(self, ledger: Ledger) -> None:
        (trial,) = ledger.propose([Prepare(kind="tas")], agent="tas", snapshot=None)
        found = {"plan": plan_of(3).to_json(), "macs": 12_345_678_901, "discrepancy": 0.1 + 0.2}
        outcome = Measured(Measurement(()), found)
        recorded = ledger.record(
            finish(trial, ledger.start(trial), outcome, {PREPARED_ROLE: WEIGHTS})
        )
        assert recorded is not None
        assert recorded.state is TrialState.MEASURED
        assert recorded.outcome == outcome
        assert recorded.artifacts == {PREPARED_ROLE: WEIGHTS}
        assert list(ledger.trials()) == [recorded]

    def test_the_next_attempt_goes_on_from_the_newest_checkpoint(self, ledger: Ledger) -> None:
        trial = one(ledger, fidelity=Fidelity.FULL)
        first = ledger.start(trial)
        assert first.resume is None
        for checkpoint in (WEIGHTS, ONNX):
            ledger.keep(first, checkpoint)
        trial = ledger.lost(first, "killed")
        second = ledger.start(trial)
        assert second.resume == ONNX
        # It died before it came further.
        third = ledger.start(trial)
        assert third.resume == ONNX

    def test_checkpoints_of_attempts_that_are_not_live_are_ignored(self, ledger: Ledger) -> None:
        trial = one(ledger, fidelity=Fidelity.FULL)
        first = ledger.start(trial)
        ledger.keep(first, WEIGHTS)
        trial = ledger.lost(first, "killed")
        ledger.keep(first, ONNX)
        second = ledger.start(trial)
        assert second.resume == WEIGHTS
        ledger.keep(first, ONNX)
        ledger.record(finish(trial, second, Failed("OSError: disk full", retryable=True)))
        ledger.keep(second, ONNX)
        assert ledger.start(trial).resume == WEIGHTS

    def test_checkpoints_of_one_trial_are_not_anothers(self, ledger: Ledger) -> None:
        ledger.keep(ledger.start(one(ledger, 1)), WEIGHTS)
        assert ledger.start(one(ledger, 2)).resume is None

    def test_a_finished_trial_is_returned_to_who_asks_again(self, ledger: Ledger) -> None:
        trial = one(ledger)
        recorded = ledger.record(finish(trial, ledger.start(trial)))
        assert one(ledger) == recorded

    def test_the_snapshot_comes_back_exactly(self, ledger: Ledger) -> None:
        arrays = {"file": np.linspace(0, 1, 7).reshape(7, 1), "empty": np.zeros((0, 3))}
        data: dict[str, Any] = {"asked": 3, "names": ["a", None], "x": 0.1}
        ledger.propose([evaluate(1)], agent="sobol", snapshot=Snapshot(data, arrays))
        ledger.propose([evaluate(2)], agent="finalist", snapshot=None)
        stored = ledger.snapshot()
        assert stored is not None
        assert dict(stored.data) == data
        assert set(stored.arrays) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(stored.arrays[name], array, strict=True)

    def test_the_newest_snapshot_replaces_the_older(self, ledger: Ledger) -> None:
        for asked in (1, 2):
            snapshot = Snapshot({"asked": asked}, {"x": np.ones(asked)} if asked == 1 else {})
            ledger.propose([evaluate(asked)], agent="sobol", snapshot=snapshot)
        stored = ledger.snapshot()
        assert stored is not None
        assert (dict(stored.data), dict(stored.arrays)) == ({"asked": 2}, {})

    def test_starting_opens_an_attempt(self, ledger: Ledger) -> None:
        trial = one(ledger)
        attempt = ledger.start(trial)
        assert attempt.trial_id == trial.id
        assert (attempt.epoch, attempt.state) == (1, AttemptState.RUNNING)
        assert ledger.trials()[0].state is TrialState.RUNNING

    def test_a_measurement_comes_back_exactly(self, ledger: Ledger) -> None:
        trial = one(ledger)
        files = {"onnx": ONNX, "weights": WEIGHTS}
        recorded = ledger.record(finish(trial, ledger.start(trial), artifacts=files))
        assert recorded == dataclasses.replace(
            trial,
            state=TrialState.MEASURED,
            outcome=Measured(measurement()),
            artifacts=files,
            recorded=0,
        )
        assert list(ledger.trials()) == [recorded]

    @pytest.mark.parametrize(
        ("outcome", "state"),
        [
            (Infeasible("the certificate refused"), TrialState.INFEASIBLE),
            (Failed("ValueError: no"), TrialState.FAILED),
        ],
    )
    def test_an_outcome_without_measurement_is_final(
        self, ledger: Ledger, outcome: Infeasible | Failed, state: TrialState
    ) -> None:
        trial = one(ledger)
        recorded = ledger.record(finish(trial, ledger.start(trial), outcome))
        assert recorded is not None
        assert (recorded.state, recorded.outcome, recorded.recorded) == (state, outcome, 0)
        assert list(ledger.trials()) == [recorded]

    def test_a_retryable_failure_is_tried_again_until_attempts_are_spent(
        self, ledger: Ledger
    ) -> None:
        trial = one(ledger)
        failed = Failed("OSError: disk full", retryable=True)
        for epoch in range(1, MAX_ATTEMPTS + 1):
            attempt = ledger.start(trial)
            assert attempt.epoch == epoch
            answer = ledger.record(finish(trial, attempt, failed))
            assert answer is not None
            trial = answer
            expected = TrialState.FAILED if epoch == MAX_ATTEMPTS else TrialState.PROPOSED
            assert trial.state is expected
        assert trial.outcome == failed
        assert ledger.spent().trials == 1

    def test_a_lost_attempt_is_tried_again_until_attempts_are_spent(self, ledger: Ledger) -> None:
        trial = one(ledger)
        for epoch in range(1, MAX_ATTEMPTS + 1):
            trial = ledger.lost(ledger.start(trial), "killed by signal 9")
            expected = TrialState.FAILED if epoch == MAX_ATTEMPTS else TrialState.PROPOSED
            assert trial.state is expected
        assert isinstance(trial.outcome, Failed)
        assert "killed by signal 9" in trial.outcome.error
        assert trial.recorded == 0
        assert ledger.spent().trials == 1

    def test_a_trial_may_be_measured_after_a_lost_attempt(self, ledger: Ledger) -> None:
        trial = ledger.lost(ledger.start(one(ledger)), "killed")
        recorded = ledger.record(finish(trial, ledger.start(trial)))
        assert recorded is not None
        assert recorded.state is TrialState.MEASURED

    def test_the_result_of_an_overtaken_attempt_is_dropped(self, ledger: Ledger) -> None:
        trial = one(ledger)
        stale = ledger.start(trial)
        live = ledger.start(trial)
        assert live.epoch == 2
        before = ledger.spent()
        assert ledger.record(finish(trial, stale, Failed("late"))) is None
        assert ledger.spent() == before
        recorded = ledger.record(finish(trial, live))
        assert recorded is not None
        assert recorded.state is TrialState.MEASURED
        assert ledger.record(finish(trial, stale, Failed("late"))) is None
        assert list(ledger.trials()) == [recorded]

    def test_a_finished_trial_is_not_started_again(self, ledger: Ledger) -> None:
        trial = one(ledger)
        ledger.record(finish(trial, ledger.start(trial)))
        with pytest.raises(IllegalTransition):
            ledger.start(trial)

    def test_recording_is_numbered_in_its_own_order(self, ledger: Ledger) -> None:
        trials = ledger.propose([evaluate(k) for k in (1, 2, 3)], agent="sobol", snapshot=None)
        attempts = [ledger.start(trial) for trial in trials]
        for i in (2, 0, 1):
            ledger.record(finish(trials[i], attempts[i]))
        assert [t.recorded for t in ledger.trials()] == [1, 2, 0]

    def test_only_search_trials_are_spent(self, ledger: Ledger) -> None:
        for fidelity in Fidelity:
            trial = one(ledger, fidelity=fidelity)
            ledger.record(finish(trial, ledger.start(trial)))
        (baseline,) = ledger.propose([evaluate(9)], agent=BASELINE_AGENT, snapshot=None)
        ledger.record(finish(baseline, ledger.start(baseline)))
        spent = ledger.spent()
        assert spent.trials == 2
        assert spent.device_s == pytest.approx((len(Fidelity) + 1) * 2.0)

    def test_events_are_taken(self, ledger: Ledger) -> None:
        trial = one(ledger)
        ledger.event("trial.progress", {"trial_id": trial.id, "loss": float("nan")})
        assert list(ledger.trials()) == [trial]

    def test_the_loop_runs_on_it_and_resumes(self, ledger: Ledger) -> None:
        def runner(work: Work, progress: object) -> Finished:
            return finish(work.trial, work.attempt)

        agent = Counter()
        # A conductor died here: one trial was proposed, another was running.
        ledger.propose(agent.ask(2), agent="counter", snapshot=agent.snapshot())
        ledger.start(ledger.trials()[1])
        successor = Counter()
        ending = loop.run(
            successor,
            InlineExecutor(runner),
            ledger,
            Budget(trials=5),
            agent_name="counter",
        )
        assert ending == "budget"
        trials = ledger.trials()
        assert [t.plan for t in trials] == [plan_of(k) for k in range(1, 6)]
        assert {t.state for t in trials} == {TrialState.MEASURED}
        assert sorted(successor.told) == sorted(t.id for t in trials)
        assert ledger.spent().trials == 5
