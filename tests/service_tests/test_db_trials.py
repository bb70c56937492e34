"""Trials as the API reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from search.agent import Prepare
from search.measurement import Infeasible, Measured, Measurement
from search.trial import Fidelity, Preparation, TrialState
from service.db import artifacts, trials
from service.db.errors import NotFound
from service.db.ledger import SqlLedger
from service.db.session import Database
from tests.contracts.ledger import ONNX, WEIGHTS, evaluate, finish, measurement, plan_of
from tests.service_tests.stored import open_ledger, store_job


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def run_trials(ledger: SqlLedger, count: int) -> None:
    for trial in ledger.propose(
        [evaluate(k) for k in range(1, count + 1)], agent="a", snapshot=None
    ):
        outcome = Infeasible("no") if trial.number % 4 == 3 else None
        files = {} if outcome else {"onnx": ONNX, "weights": WEIGHTS}
        ledger.record(finish(trial, ledger.start(trial), outcome, artifacts=files))


def test_a_trial_comes_with_all_that_is_known(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    run_trials(ledger, 1)
    (recorded,) = ledger.trials()
    with database.read() as session:
        stored = trials.get(session, recorded.id)
        onnx = artifacts.get(session, stored.artifact_ids["onnx"])
    assert (stored.id, stored.job_id, stored.trial) == (recorded.id, job_id, recorded)
    assert stored.readings == measurement().readings
    assert dict(stored.plan) == plan_of(1).to_json()
    assert stored.plan_digest == plan_of(1).digest
    assert [a.epoch for a in stored.attempts] == [1]
    assert set(stored.artifact_ids) == {"onnx", "weights"}
    assert (onnx.digest, onnx.media_type) == (ONNX, "application/octet-stream")


def test_an_unknown_trial_is_not_found(database: Database) -> None:
    with database.read() as session, pytest.raises(NotFound, match="trl_none"):
        trials.get(session, "trl_none")


def test_pages_follow_the_order_of_proposal(database: Database) -> None:
    job_id = store_job(database)
    run_trials(open_ledger(database), 7)
    seen, cursor = [], None
    with database.read() as session:
        while True:
            page = trials.page(session, job_id, cursor=cursor, limit=3)
            seen += [t.trial.number for t in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert seen == list(range(7))


def test_pages_are_filtered(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    run_trials(ledger, 5)
    ledger.propose([evaluate(1, Fidelity.FULL)], agent="finalist", snapshot=None)
    with database.read() as session:

        def numbers(**filters: Any) -> list[int]:
            return [t.trial.number for t in trials.page(session, job_id, **filters).items]

        assert numbers(state=TrialState.INFEASIBLE) == [3]
        assert numbers(fidelity=Fidelity.FULL) == [5]
        assert numbers(fidelity=Fidelity.PROXY, state=TrialState.MEASURED) == [0, 1, 2, 4]
        assert numbers(fidelity=Fidelity.SHORT) == []
        assert trials.page(session, "job_none").items == []


def test_a_longer_page_takes_no_more_statements(database: Database) -> None:
    job_id = store_job(database)
    run_trials(open_ledger(database), 12)
    counts = []
    for limit in (2, 12):
        with statements(database) as seen, database.read() as session:
            assert len(trials.page(session, job_id, limit=limit).items) == limit
        counts.append(len(seen))
    assert counts == [4, 4]


def test_a_preparation_is_stored_with_what_it_found(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    order = Prepare(kind="finetune", options={"steps": 3})
    (trial,) = ledger.propose([order], agent="cooling", snapshot=None)
    outcome = Measured(Measurement(()), {"top1": 0.5})
    ledger.record(finish(trial, ledger.start(trial), outcome))
    with database.read() as session:
        (stored,) = trials.page(session, job_id, fidelity=Fidelity.PREPARED).items
    assert stored.trial.preparation == Preparation(kind="finetune", options={"steps": 3})
    assert stored.trial.outcome == outcome
    assert stored.readings == ()
