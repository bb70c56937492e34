"""A job's life in any order of events, against a model of it in plain Python."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select

from search.errors import IllegalTransition
from search.measurement import Failed, Infeasible
from search.trial import FINISHED, MAX_ATTEMPTS, Attempt, Trial, TrialState
from service.db import events, jobs, lease, trials
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.db.tables import AttemptRow
from service.job_state import ENDED, JobOutcome, JobState
from tests.contracts.ledger import evaluate, finish
from tests.service_tests.stored import Clock, store_job
from workers.errors import LeaseLost

OUTCOMES = (None, Infeasible("no"), Failed("broken"), Failed("disk full", retryable=True))


@dataclasses.dataclass
class Expected:
    """What a trial should be."""

    state: TrialState = TrialState.PROPOSED
    attempts: int = 0
    live: str | None = None


class JobLife(RuleBasedStateMachine):
    """Conductors come, go and die; each rule says what must follow."""

    ledgers = Bundle("ledgers")
    attempts = Bundle("attempts")
    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "x.db")
        self.database = Database(f"sqlite:///{self.folder / 'x.db'}", durable=False)
        self.job_id = store_job(self.database)
        self.clock = Clock()
        self.epoch = 0
        self.holder = 0
        self.expected: dict[str, Expected] = {}
        self.job_state = JobState.QUEUED
        self.events = 0

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    @rule(target=ledgers)
    def claim(self) -> object:
        with self.database.write() as session:
            claim = lease.claim_job(session, f"owner {self.epoch % 2}", 30.0, now=self.clock())
        if claim is None:
            assert self.holder or self.job_state in ENDED
            return multiple()
        assert self.job_state not in ENDED
        assert claim.epoch == self.epoch + 1
        self.epoch = self.holder = claim.epoch
        ledger = SqlLedger(self.database, self.job_id, claim.owner, claim.epoch, 30.0, self.clock)
        return claim.epoch, ledger

    @rule()
    def expire(self) -> None:
        self.clock.advance(31)

    @rule(held=ledgers)
    def wish(self, held: tuple[int, SqlLedger]) -> None:
        if self.refused(held):
            return
        expected = "cancel" if self.job_state is JobState.CANCELLING else "run"
        assert held[1].wish() == expected

    @rule(held=ledgers, keep=st.integers(1, 4))
    def propose(self, held: tuple[int, SqlLedger], keep: int) -> None:
        if self.refused(held):
            return
        (trial,) = held[1].propose([evaluate(keep)], agent="a", snapshot=None)
        expected = self.expected.setdefault(trial.id, Expected())
        assert trial.state is expected.state

    @rule(target=attempts, held=ledgers, pick=st.integers(0, 3))
    def start(self, held: tuple[int, SqlLedger], pick: int) -> object:
        known = held[1].trials()
        if pick >= len(known) or self.refused(held):
            return multiple()
        trial, expected = known[pick], self.expected[known[pick].id]
        if expected.state in FINISHED:
            with pytest.raises(IllegalTransition):
                held[1].start(trial)
            return multiple()
        attempt = held[1].start(trial)
        expected.attempts += 1
        expected.state, expected.live = TrialState.RUNNING, attempt.id
        assert attempt.epoch == expected.attempts
        return trial, attempt

    @rule(held=ledgers, begun=attempts, outcome=st.sampled_from(OUTCOMES))
    def record(
        self,
        held: tuple[int, SqlLedger],
        begun: tuple[Trial, Attempt],
        outcome: Infeasible | Failed | None,
    ) -> None:
        if self.refused(held):
            return
        trial, attempt = begun
        expected = self.expected[trial.id]
        answer = held[1].record(finish(trial, attempt, outcome))
        if expected.live != attempt.id:
            assert answer is None or answer.state is expected.state
            return
        expected.live = None
        if isinstance(outcome, Failed):
            again = outcome.retryable and attempt.epoch < MAX_ATTEMPTS
            expected.state = TrialState.PROPOSED if again else TrialState.FAILED
        else:
            expected.state = TrialState.INFEASIBLE if outcome else TrialState.MEASURED
        assert answer is not None
        assert answer.state is expected.state

    @rule(held=ledgers, begun=attempts)
    def lose(self, held: tuple[int, SqlLedger], begun: tuple[Trial, Attempt]) -> None:
        if self.refused(held):
            return
        trial, attempt = begun
        self._lose(self.expected[trial.id], attempt.id)
        assert held[1].lost(attempt, "killed").state is self.expected[trial.id].state

    @rule(held=ledgers)
    def abandon(self, held: tuple[int, SqlLedger]) -> None:
        if self.refused(held):
            return
        for expected in self.expected.values():
            self._lose(expected, expected.live)
        for trial in held[1].abandon("restart"):
            assert trial.state is self.expected[trial.id].state

    @rule(to=st.sampled_from([JobState.RUNNING, JobState.FINALIZING]))
    def move(self, to: JobState) -> None:
        legal = {JobState.RUNNING: JobState.QUEUED, JobState.FINALIZING: JobState.RUNNING}
        with self.database.write() as session:
            if self.job_state is not legal[to]:
                with pytest.raises(IllegalTransition):
                    jobs.transition(session, self.job_id, to, "why")
                return
            jobs.transition(session, self.job_id, to, "why")
        self.job_state = to

    @rule(sure=st.integers(0, 4))
    def cancel(self, sure: int) -> None:
        if sure:
            return
        with self.database.write() as session:
            state = jobs.request_cancel(session, self.job_id).state
        if self.job_state is JobState.QUEUED:
            self._ended()
        elif self.job_state is not JobState.CANCELLED:
            self.job_state = JobState.CANCELLING
        assert state is self.job_state

    @rule(held=ledgers)
    def end_cancelled(self, held: tuple[int, SqlLedger]) -> None:
        if self.job_state is not JobState.CANCELLING or self.refused(held):
            return
        with held[1].fenced() as session:
            jobs.finish(session, self.job_id, JobState.CANCELLED, JobOutcome.CANCELLED)
        self._ended()

    @invariant()
    def books_agree(self) -> None:
        with self.database.read() as session:
            job = jobs.get(session, self.job_id)
            found = trials.everything(session, self.job_id)
            log = [e.seq for e in events.after(session, self.job_id, limit=10_000)]
            live = session.scalar(
                select(func.count()).select_from(AttemptRow).where(AttemptRow.state == "RUNNING")
            )
        assert {t.id: t.state for t in found} == {i: e.state for i, e in self.expected.items()}
        assert job.state is self.job_state
        assert live == sum(e.live is not None for e in self.expected.values())
        recorded = sorted(t.recorded for t in found if t.recorded is not None)
        assert recorded == list(range(job.spent.trials))
        assert log == list(range(1, job.last_event + 1))
        assert len(log) >= self.events
        self.events = len(log)

    def refused(self, held: tuple[int, SqlLedger]) -> bool:
        """Whether this ledger's lease is gone; then check that it writes nothing."""
        if held[0] == self.holder:
            return False
        with pytest.raises(LeaseLost):
            held[1].event("late", {})
        return True

    def _lose(self, expected: Expected, attempt_id: str | None) -> None:
        if attempt_id is None or expected.live != attempt_id:
            return
        expected.live = None
        spent = expected.attempts >= MAX_ATTEMPTS
        expected.state = TrialState.FAILED if spent else TrialState.PROPOSED

    def _ended(self) -> None:
        self.job_state, self.holder = JobState.CANCELLED, 0
        for expected in self.expected.values():
            expected.live = None
            if expected.state not in FINISHED:
                expected.state = TrialState.CANCELLED


def test_any_order_of_events_keeps_the_books(migrated_file: Path) -> None:
    JobLife.template = migrated_file
    run_state_machine_as_test(
        JobLife,
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
