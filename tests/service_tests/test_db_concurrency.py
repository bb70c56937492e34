"""Many threads and processes write at once; any of them may be killed at any moment."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from search.trial import TrialState
from service.db import events, jobs, lease, trials
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.db.tables import AttemptRow, ReadingRow
from tests.contracts.ledger import evaluate, finish, measurement
from tests.service_tests.stored import store_job
from workers.errors import LeaseLost

THREADS = 8
PROCESSES = 4
EACH = 5
READINGS = len(measurement().readings)


def start_process(database: Database, owner: str, count: int) -> subprocess.Popen[str]:
    url = database.url.render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.service_tests.ledger_process", url, owner, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def write_trials(database: Database, owner: str) -> None:
    with database.write() as session:
        claim = lease.claim_job(session, owner, 600.0)
    assert claim is not None
    ledger = SqlLedger(database, claim.job_id, owner, claim.epoch, 600.0)
    for keep in range(1, EACH + 1):
        ledger.wish()
        (trial,) = ledger.propose([evaluate(keep)], agent="a", snapshot=None)
        assert ledger.record(finish(trial, ledger.start(trial))) is not None


def check_books(database: Database, job_id: str) -> int:
    """Check that a job's counters agree with its rows; return how many trials are measured."""
    with database.read() as session:
        job = jobs.get(session, job_id)
        found = trials.everything(session, job_id)
        log = [e.seq for e in events.after(session, job_id, limit=100_000)]
        live = session.scalar(
            select(func.count()).select_from(AttemptRow).where(AttemptRow.state == "RUNNING")
        )
        readings = session.scalar(select(func.count()).select_from(ReadingRow))
    measured = [t for t in found if t.state is TrialState.MEASURED]
    assert [t.number for t in found] == list(range(len(found)))
    assert sorted(t.recorded for t in measured if t.recorded is not None) == list(
        range(len(measured))
    )
    assert job.spent.trials == len(measured)
    assert log == list(range(1, job.last_event + 1))
    assert live is not None
    assert readings is not None
    assert readings % READINGS == 0
    return len(measured)


def test_threads_and_processes_write_without_a_lock_error(database: Database) -> None:
    job_ids = [store_job(database) for _ in range(THREADS + PROCESSES)]
    errors: list[BaseException] = []

    def work(owner: str) -> None:
        try:
            write_trials(database, owner)
        except BaseException as error:
            errors.append(error)

    processes = [start_process(database, f"process {i}", EACH) for i in range(PROCESSES)]
    threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    complaints = [process.communicate()[1] for process in processes]
    assert errors == []
    assert [p.returncode for p in processes] == [0] * PROCESSES, "\n".join(complaints)
    assert [check_books(database, job_id) for job_id in job_ids] == [EACH] * len(job_ids)


@pytest.mark.parametrize("after", [1, 4])
def test_kill_9_loses_no_committed_trial(database: Database, after: int) -> None:
    job_id = store_job(database)
    process = start_process(database, "first", 0)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(1 + after)]
    # Somewhere within the next trial's transactions.
    time.sleep(0.004 * after)
    process.kill()
    said += process.stdout.read().split()
    process.communicate()
    assert said[0] == job_id
    committed = said[1:]
    assert len(committed) >= after
    with database.read() as session:
        held = lease.holder(session, job_id)
    assert held is not None
    with database.write() as session:
        assert lease.claim_job(session, "second") is None
        claim = lease.claim_job(session, "second", now=held.expires_at)
    assert claim is not None
    ledger = SqlLedger(database, job_id, "second", claim.epoch)
    ledger.abandon("the conductor was killed")
    found = ledger.trials()
    measured = [t.id for t in found if t.state is TrialState.MEASURED]
    # Said means committed; one more may have been committed and not said any more.
    assert measured[: len(committed)] == committed
    assert len(found) - len(committed) <= 1
    assert check_books(database, job_id) == len(measured)
    snapshot = ledger.snapshot()
    assert snapshot is not None
    assert snapshot.data == {"asked": len(found)}
    for trial in found:
        if trial.state is TrialState.PROPOSED:
            assert ledger.record(finish(trial, ledger.start(trial))) is not None
    assert check_books(database, job_id) == len(found)
    if database.url.get_backend_name() == "sqlite":
        with database.read() as session:
            assert session.scalar(text("PRAGMA integrity_check")) == "ok"


def test_a_conductor_that_slept_through_its_lease_writes_nothing(database: Database) -> None:
    job_id = store_job(database)
    with database.write() as session:
        first = lease.claim_job(session, "sleeper", 0.0)
        second = lease.claim_job(session, "awake", 600.0)
    assert first is not None
    assert second is not None
    awake = SqlLedger(database, job_id, "awake", second.epoch, 600.0)
    sleeper = SqlLedger(database, job_id, "sleeper", first.epoch, 600.0)
    refused: list[str] = []

    def sleep_walk() -> None:
        for keep in range(100, 100 + EACH):
            try:
                sleeper.propose([evaluate(keep)], agent="a", snapshot=None)
            except LeaseLost as error:
                refused.append(str(error))

    thread = threading.Thread(target=sleep_walk)
    thread.start()
    for keep in range(1, EACH + 1):
        (trial,) = awake.propose([evaluate(keep)], agent="a", snapshot=None)
        awake.record(finish(trial, awake.start(trial)))
    thread.join()
    assert len(refused) == EACH
    assert check_books(database, job_id) == EACH
    assert len(awake.trials()) == EACH
