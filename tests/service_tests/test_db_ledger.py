"""The SQL ledger: the contract, and what only SQL promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from search.agent import Snapshot
from search.errors import IllegalTransition
from search.measurement import Failed
from search.trial import MAX_ATTEMPTS, AttemptState, TrialState
from service.db import artifacts, events, jobs, lease, trials
from service.db.errors import NotFound
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.job_state import JobOutcome, JobState
from tests.contracts.ledger import ONNX, LedgerContract, evaluate, finish, one
from tests.contracts.warm_start import WarmStartContract
from tests.service_tests.stored import Clock, open_ledger, store_job
from workers.errors import LeaseLost


class TestSqlLedger(LedgerContract, WarmStartContract):
    """On SQLite, and on PostgreSQL under its marker."""

    @pytest.fixture
    def ledger(self, database: Database) -> SqlLedger:
        """The ledger of a claimed job."""
        store_job(database)
        return open_ledger(database)


def test_recording_again_changes_nothing_and_answers_the_same(database: Database) -> None:
    store_job(database)
    ledger = open_ledger(database)
    trial = one(ledger)
    finished = finish(trial, ledger.start(trial))
    first = ledger.record(finished)
    assert first is not None
    spent = ledger.spent()
    assert ledger.record(finished) == first
    assert ledger.spent() == spent


def test_the_late_result_of_a_lost_attempt_is_dropped(database: Database) -> None:
    store_job(database)
    ledger = open_ledger(database)
    trial = one(ledger)
    attempt = ledger.start(trial)
    reopened = ledger.lost(attempt, "silent for too long")
    assert ledger.record(finish(trial, attempt)) is None
    assert ledger.trials() == [reopened]
    assert ledger.lost(attempt, "again") == reopened


def test_seeds_follow_from_the_job_and_the_number(database: Database) -> None:
    seeds: list[list[int]] = []
    for seed in (5, 5, 6):
        store_job(database, seed=seed)
        ledger = open_ledger(database, owner=f"owner {len(seeds)}")
        seeds.append(
            [t.seed for t in ledger.propose([evaluate(1), evaluate(2)], agent="a", snapshot=None)]
        )
    assert seeds[0] == seeds[1] != seeds[2]


def test_every_write_of_a_lost_lease_is_refused_and_leaves_nothing(database: Database) -> None:
    job_id = store_job(database)
    clock = Clock()
    stale = open_ledger(database, "first", clock)
    trial = one(stale)
    attempt = stale.start(trial)
    clock.advance(31)
    successor = open_ledger(database, "second", clock)
    writes: dict[str, Callable[[], Any]] = {
        "wish": stale.wish,
        "propose": lambda: stale.propose([evaluate(2)], agent="a", snapshot=Snapshot({})),
        "start": lambda: stale.start(trial),
        "record": lambda: stale.record(finish(trial, attempt)),
        "lost": lambda: stale.lost(attempt, "killed"),
        "abandon": lambda: stale.abandon("restart"),
        "warm_start": lambda: stale.warm_start([]),
        "event": lambda: stale.event("trial.progress", {}),
    }
    with database.read() as session:
        before = events.after(session, job_id)
    for name, write in writes.items():
        with pytest.raises(LeaseLost, match=job_id):
            write()
        with database.read() as session:
            assert events.after(session, job_id) == before, name
    assert [t.state for t in successor.trials()] == [TrialState.RUNNING]
    assert successor.snapshot() is None


def test_an_expired_lease_that_nobody_took_is_good(database: Database) -> None:
    store_job(database)
    clock = Clock()
    ledger = open_ledger(database, clock=clock)
    clock.advance(1000)
    assert ledger.wish() == "run"
    clock.advance(29)
    with database.write() as session:
        assert lease.claim_job(session, "second", now=clock()) is None


def test_wall_time_is_what_passes_between_looks_under_the_lease(database: Database) -> None:
    store_job(database)
    clock = Clock()
    first = open_ledger(database, "first", clock)
    clock.advance(5)
    first.wish()
    clock.advance(2.5)
    first.wish()
    clock.advance(-100)
    first.wish()
    clock.advance(100 + 3600)
    second = open_ledger(database, "second", clock)
    second.wish()
    clock.advance(4)
    second.wish()
    # The hour in which nobody held the job is nobody's; nor is what came before the first look.
    assert second.spent().wall_s == pytest.approx(6.5)


def test_the_wish_is_what_the_user_asked(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    with ledger.fenced() as session:
        jobs.transition(session, job_id, JobState.RUNNING, "claimed")
    with database.write() as session:
        jobs.request_cancel(session, job_id)
    assert ledger.wish() == "cancel"


def test_an_ended_job_takes_no_more(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    trial, other = ledger.propose([evaluate(1), evaluate(2)], agent="a", snapshot=None)
    attempt = ledger.start(trial)
    with ledger.fenced() as session:
        jobs.transition(session, job_id, JobState.RUNNING, "claimed")
        jobs.finish(session, job_id, JobState.FAILED, JobOutcome.FAILED, "no")
    with pytest.raises(LeaseLost):
        ledger.record(finish(trial, attempt))
    assert [t.state for t in ledger.trials()] == [TrialState.CANCELLED, TrialState.CANCELLED]
    with database.read() as session:
        stored = trials.get(session, trial.id)
        assert [a.state for a in stored.attempts] == [AttemptState.LOST]
        assert trials.get(session, other.id).attempts == ()


def test_a_successor_abandons_what_was_live(database: Database) -> None:
    store_job(database)
    clock = Clock()
    ledger = open_ledger(database, "owner 0", clock)
    trial = one(ledger)
    for life in range(1, MAX_ATTEMPTS + 1):
        ledger.start(trial)
        clock.advance(31)
        ledger = open_ledger(database, f"owner {life}", clock)
        (trial,) = ledger.abandon("the conductor died")
    assert trial.state is TrialState.FAILED
    assert isinstance(trial.outcome, Failed)
    assert "the conductor died" in trial.outcome.error
    assert ledger.abandon("again") == []


def test_attempts_tell_what_they_cost_and_why_they_ended(database: Database) -> None:
    store_job(database)
    clock = Clock()
    ledger = open_ledger(database, "conductor", clock)
    trial = ledger.lost(ledger.start(one(ledger)), "killed by \0 signal \ud800")
    attempt = ledger.start(trial)
    clock.advance(3)
    ledger.record(
        finish(trial, attempt, artifacts={"onnx": ONNX}, seconds={"apply": 1.5, "time": 0.5})
    )
    with database.read() as session:
        stored = trials.get(session, trial.id)
    first, second = stored.attempts
    assert (first.state, first.reason) == (AttemptState.LOST, "killed by ? signal ?")
    assert (second.state, second.reason) == (AttemptState.SUCCEEDED, None)
    assert second.seconds == {"apply": 1.5, "time": 0.5}
    assert second.owner == "conductor"
    assert second.ended_at is not None
    assert (second.ended_at - second.started_at).total_seconds() == 3
    assert ledger.spent().device_s == 0.5


def test_artifacts_are_registered_with_their_size(database: Database) -> None:
    store_job(database)
    held = open_ledger(database)
    with database.read() as session:
        claim = lease.holder(session, held._job_id)
    assert claim is not None
    ledger = SqlLedger(
        database, claim.job_id, claim.owner, claim.epoch, size_of=lambda digest: len(digest)
    )
    trial = one(ledger)
    ledger.record(finish(trial, ledger.start(trial), artifacts={"onnx": ONNX}))
    with database.read() as session:
        stored = trials.get(session, trial.id)
        artifact = artifacts.get(session, stored.artifact_ids["onnx"])
    assert (artifact.digest, artifact.role, artifact.size_bytes) == (ONNX, "onnx", 64)
    assert artifact.file_name == "model.onnx"


def test_the_log_tells_a_trials_life(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    trial = ledger.lost(ledger.start(one(ledger)), "killed")
    ledger.record(finish(trial, ledger.start(trial)))
    with database.read() as session:
        log = events.after(session, job_id)
    assert [(e.seq, e.kind) for e in log] == [
        (1, "job.queued"),
        (2, "trial.proposed"),
        (3, "trial.started"),
        (4, "trial.retried"),
        (5, "trial.started"),
        (6, "trial.finished"),
    ]
    assert {e.payload["trial_id"] for e in log[1:]} == {trial.id}
    assert log[-1].payload["state"] == "MEASURED"


def test_a_trial_of_another_job_is_refused(database: Database) -> None:
    store_job(database)
    mine = open_ledger(database, "first")
    store_job(database)
    other = open_ledger(database, "second")
    trial = one(mine)
    with pytest.raises(NotFound, match=trial.id):
        other.start(trial)
    attempt = mine.start(trial)
    with pytest.raises(NotFound, match=trial.id):
        other.lost(attempt, "killed")


def test_a_job_that_ended_while_queued_cannot_run(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    with database.write() as session:
        jobs.request_cancel(session, job_id)
    with pytest.raises(LeaseLost), ledger.fenced():
        pass
    with pytest.raises(IllegalTransition), database.write() as session:
        jobs.transition(session, job_id, JobState.RUNNING, "claimed")
