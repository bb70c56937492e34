"""Leases: one owner at a time, epochs that only grow."""

from __future__ import annotations

import dataclasses
import datetime
import threading

import pytest

from service.db import jobs, lease
from service.db.session import Database
from service.job_state import JobOutcome, JobState
from tests.service_tests.stored import START, store_job
from workers.errors import LeaseLost

RACERS = 8


def later(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def test_jobs_are_claimed_oldest_first_and_once(database: Database) -> None:
    ids = [store_job(database) for _ in range(3)]
    with database.write() as session:
        claims = [lease.claim_job(session, "me", 30.0, now=START) for _ in range(4)]
    assert [c and c.job_id for c in claims] == [*ids, None]
    assert [c and c.epoch for c in claims] == [1, 1, 1, None]


def test_a_lease_that_ran_out_is_taken_with_the_next_epoch(database: Database) -> None:
    store_job(database)
    with database.write() as session:
        first = lease.claim_job(session, "first", 30.0, now=START)
        assert lease.claim_job(session, "second", 30.0, now=later(29)) is None
        second = lease.claim_job(session, "second", 30.0, now=later(30))
    assert first is not None
    assert second is not None
    assert (first.epoch, second.epoch) == (1, 2)
    with database.write() as session, pytest.raises(LeaseLost, match="'first' at epoch 1"):
        lease.renew(session, first.job_id, first.owner, first.epoch, now=later(31))


def test_an_owner_that_claims_again_loses_its_older_epoch(database: Database) -> None:
    job_id = store_job(database)
    with database.write() as session:
        lease.claim_job(session, "me", 30.0, now=START)
        lease.claim_job(session, "me", 30.0, now=later(30))
        with pytest.raises(LeaseLost, match="epoch 1"):
            lease.renew(session, job_id, "me", 1, now=later(31))
        assert lease.renew(session, job_id, "me", 2, now=later(31)).epoch == 2


def test_renewing_pushes_the_end(database: Database) -> None:
    store_job(database)
    with database.write() as session:
        claim = lease.claim_job(session, "first", 30.0, now=START)
        assert claim is not None
        renewed = lease.renew(session, claim.job_id, "first", 1, lease_s=30.0, now=later(20))
        assert renewed.expires_at == later(50)
        assert lease.holder(session, claim.job_id) == renewed
        assert lease.claim_job(session, "second", 30.0, now=later(49)) is None


def test_a_released_job_can_be_claimed_at_once(database: Database) -> None:
    store_job(database)
    with database.write() as session:
        claim = lease.claim_job(session, "first", 30.0, now=START)
        assert claim is not None
        stale = dataclasses.replace(claim, epoch=0)
        assert not lease.release(session, stale)
        assert lease.release(session, claim)
        assert not lease.release(session, claim)
        assert lease.holder(session, claim.job_id) is None
        again = lease.claim_job(session, "first", 30.0, now=START)
    assert again is not None
    assert again.epoch == 2


@pytest.mark.parametrize(
    ("route", "claimable"),
    [
        ([], True),
        ([JobState.RUNNING], True),
        ([JobState.RUNNING, JobState.FINALIZING], True),
        ([JobState.RUNNING, JobState.CANCELLING], True),
        ([JobState.RUNNING, JobState.FINALIZING, JobState.SUCCEEDED], False),
        ([JobState.FAILED], False),
        ([JobState.CANCELLED], False),
    ],
)
def test_only_jobs_with_work_left_are_claimed(
    database: Database, route: list[JobState], claimable: bool
) -> None:
    job_id = store_job(database)
    with database.write() as session:
        for state in route:
            jobs.transition(session, job_id, state, "on the way")
        claim = lease.claim_job(session, "me")
    assert (claim is not None) == claimable


def test_an_ended_job_lets_its_owner_go(database: Database) -> None:
    job_id = store_job(database)
    with database.write() as session:
        claim = lease.claim_job(session, "me")
        assert claim is not None
        jobs.finish(session, job_id, JobState.FAILED, JobOutcome.FAILED, "no")
        assert lease.holder(session, job_id) is None
        with pytest.raises(LeaseLost):
            lease.renew(session, job_id, "me", claim.epoch)
        assert not lease.release(session, claim)


def test_of_many_claimers_one_wins(database: Database) -> None:
    job_id = store_job(database)
    gate = threading.Barrier(RACERS)
    won: list[lease.Claim] = []
    errors: list[BaseException] = []

    def race(name: str) -> None:
        try:
            gate.wait()
            with database.write() as session:
                claim = lease.claim_job(session, name)
            if claim is not None:
                won.append(claim)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=race, args=(f"racer {i}",)) for i in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [(c.job_id, c.epoch) for c in won] == [(job_id, 1)]
