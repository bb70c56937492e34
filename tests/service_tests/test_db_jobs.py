"""Jobs: submission, listing, moves, cancelling."""

from __future__ import annotations

import pytest

from search.budget import Spent
from search.errors import IllegalTransition
from search.trial import TrialState
from service.db import events, jobs, trials
from service.db.errors import CursorInvalid, NotFound
from service.db.session import Database
from service.job_state import ACTIVE, ENDED, LEGAL, JobOutcome, JobState, JobWish
from tests.contracts.ledger import evaluate
from tests.service_tests.stored import open_ledger, store_job

ROUTES = {
    JobState.QUEUED: (),
    JobState.RUNNING: (JobState.RUNNING,),
    JobState.FINALIZING: (JobState.RUNNING, JobState.FINALIZING),
    JobState.SUCCEEDED: (JobState.RUNNING, JobState.FINALIZING, JobState.SUCCEEDED),
    JobState.FAILED: (JobState.FAILED,),
    JobState.CANCELLING: (JobState.RUNNING, JobState.CANCELLING),
    JobState.CANCELLED: (JobState.CANCELLED,),
}


def job_in(database: Database, state: JobState) -> str:
    job_id = store_job(database)
    with database.write() as session:
        for step in ROUTES[state]:
            jobs.transition(session, job_id, step, "on the way")
    return job_id


def test_a_submitted_job_is_queued_with_its_spec(database: Database) -> None:
    job_id = store_job(database, labels={"team": "vision"}, seed=7)
    with database.read() as session:
        job = jobs.get(session, job_id)
        (submitted,) = events.after(session, job_id)
    assert (job.state, job.wish, job.outcome) == (JobState.QUEUED, JobWish.RUN, None)
    assert (dict(job.spec), dict(job.labels), job.seed) == (
        {"agent": "sobol"},
        {"team": "vision"},
        7,
    )
    assert job.spent == Spent()
    assert (submitted.kind, submitted.seq, job.last_event) == ("job.queued", 1, 1)
    assert job.created_at.utcoffset() is not None


def test_equal_specs_have_equal_digests(database: Database) -> None:
    with database.read() as session:
        first, second = (store_job(database) for _ in range(2))
        digests = {jobs.get(session, job_id).spec_digest for job_id in (first, second)}
    assert len(digests) == 1


def test_an_unknown_job_is_not_found(database: Database) -> None:
    with database.write() as session:
        for act in (jobs.get, jobs.request_cancel):
            with pytest.raises(NotFound, match="job_none"):
                act(session, "job_none")


def test_pages_are_newest_first_and_without_gaps(database: Database) -> None:
    ids = [store_job(database) for _ in range(7)]
    seen, cursor = [], None
    with database.read() as session:
        while True:
            page = jobs.page(session, cursor=cursor, limit=3)
            seen += [job.id for job in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert seen == ids[::-1]


def test_a_job_submitted_meanwhile_does_not_shift_pages(database: Database) -> None:
    ids = [store_job(database) for _ in range(4)]
    with database.read() as session:
        first = jobs.page(session, limit=2)
    store_job(database)
    with database.read() as session:
        second = jobs.page(session, limit=2, cursor=first.next_cursor)
    assert [job.id for job in (*first.items, *second.items)] == ids[::-1]
    assert second.next_cursor is None


def test_pages_are_filtered_by_state_and_labels(database: Database) -> None:
    plain = store_job(database)
    red = store_job(database, labels={"team": "red", "run": "1"})
    blue = store_job(database, labels={"team": "blue", "a.b/c d": "x"})
    with database.write() as session:
        jobs.transition(session, red, JobState.RUNNING, "claimed")

    def found(state: JobState | None = None, **labels: str) -> list[str]:
        with database.read() as session:
            return [job.id for job in jobs.page(session, state=state, labels=labels).items]

    assert found(JobState.QUEUED) == [blue, plain]
    assert found(team="red") == [red]
    assert found(team="red", run="2") == []
    assert found(JobState.QUEUED, team="blue", **{"a.b/c d": "x"}) == [blue]
    assert found(missing="x") == []


@pytest.mark.parametrize("cursor", ["", "x", "bm90IGpzb24", "é", "WzEsInRyaWFscyIsM10"])
def test_a_foreign_cursor_is_refused(database: Database, cursor: str) -> None:
    with database.read() as session, pytest.raises(CursorInvalid):
        jobs.page(session, cursor=cursor)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_a_limit_out_of_range_is_refused(database: Database, limit: int) -> None:
    with database.read() as session, pytest.raises(ValueError, match=f"limit is {limit}"):
        jobs.page(session, limit=limit)


@pytest.mark.parametrize("before", list(JobState))
def test_only_legal_moves_are_made(database: Database, before: JobState) -> None:
    for after in JobState:
        job_id = job_in(database, before)
        with database.write() as session:
            if after in LEGAL[before]:
                assert jobs.transition(session, job_id, after, "why").state is after
            else:
                with pytest.raises(IllegalTransition, match=before):
                    jobs.transition(session, job_id, after, "why")
                assert jobs.get(session, job_id).state is before


def test_states_are_active_or_ended() -> None:
    assert set(JobState) == ACTIVE | ENDED
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED} == ENDED


def test_moves_leave_history_and_events(database: Database) -> None:
    job_id = job_in(database, JobState.FINALIZING)
    with database.write() as session:
        jobs.finish(session, job_id, JobState.SUCCEEDED, JobOutcome.FRONT_FOUND)
    with database.read() as session:
        history = jobs.transitions(session, job_id)
        log = events.after(session, job_id)
        job = jobs.get(session, job_id)
    assert [(t.before, t.after) for t in history] == [
        (None, JobState.QUEUED),
        (JobState.QUEUED, JobState.RUNNING),
        (JobState.RUNNING, JobState.FINALIZING),
        (JobState.FINALIZING, JobState.SUCCEEDED),
    ]
    assert [e.kind for e in log] == ["job.queued", "job.running", "job.finalizing", "job.succeeded"]
    assert log[-1].payload == {
        "state": "SUCCEEDED",
        "reason": "front_found",
        "outcome": "front_found",
    }
    assert job.outcome is JobOutcome.FRONT_FOUND
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.started_at <= job.ended_at


def test_a_failed_job_says_why(database: Database) -> None:
    job_id = job_in(database, JobState.RUNNING)
    with database.write() as session:
        job = jobs.finish(session, job_id, JobState.FAILED, JobOutcome.FAILED, "no baseline")
    assert job.problem == {"detail": "no baseline"}


def test_cancelling_a_queued_job_ends_it(database: Database) -> None:
    job_id = store_job(database)
    with database.write() as session:
        job = jobs.request_cancel(session, job_id)
        again = jobs.request_cancel(session, job_id)
    assert (job.state, job.wish, job.outcome) == (
        JobState.CANCELLED,
        JobWish.CANCEL,
        JobOutcome.CANCELLED,
    )
    assert again == job


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.FINALIZING])
def test_cancelling_a_running_job_asks_its_conductor(database: Database, state: JobState) -> None:
    job_id = job_in(database, state)
    with database.write() as session:
        job = jobs.request_cancel(session, job_id)
        again = jobs.request_cancel(session, job_id)
    assert (job.state, job.wish, job.outcome) == (JobState.CANCELLING, JobWish.CANCEL, None)
    assert again == job


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
def test_an_ended_job_cannot_be_cancelled(database: Database, state: JobState) -> None:
    job_id = job_in(database, state)
    with database.write() as session, pytest.raises(IllegalTransition):
        jobs.request_cancel(session, job_id)


def test_a_job_cancelled_at_its_very_end_is_cancelled(database: Database) -> None:
    job_id = job_in(database, JobState.FINALIZING)
    with database.write() as session:
        jobs.request_cancel(session, job_id)
        job = jobs.finish(session, job_id, JobState.SUCCEEDED, JobOutcome.FRONT_FOUND)
    assert (job.state, job.outcome) == (JobState.CANCELLED, JobOutcome.CANCELLED)


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    job_id = store_job(database)

    def crash() -> None:
        with database.write() as session:
            jobs.transition(session, job_id, JobState.RUNNING, "claimed")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    with database.read() as session:
        assert jobs.get(session, job_id).state is JobState.QUEUED
        assert len(jobs.transitions(session, job_id)) == 1
        assert len(events.after(session, job_id)) == 1


def test_trials_are_counted_by_state(database: Database) -> None:
    job_id, other = store_job(database), store_job(database)
    ledger = open_ledger(database)
    trial, *_ = ledger.propose([evaluate(1), evaluate(2)], agent="a", snapshot=None)
    ledger.start(trial)
    with database.read() as session:
        assert trials.counts(session, [job_id, other]) == {
            job_id: {TrialState.PROPOSED: 1, TrialState.RUNNING: 1},
            other: {},
        }
