"""The job's log: numbered without gaps, whoever writes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from service.db import events
from service.db.errors import NotFound
from service.db.session import Database
from tests.service_tests.stored import store_job

THREADS = 8
EACH = 10


def test_events_come_back_in_order_after_a_number(database: Database) -> None:
    job_id = store_job(database)
    with database.write() as session:
        numbers = [events.append(session, job_id, "note", {"i": i}) for i in range(5)]
    with database.read() as session:
        log = events.after(session, job_id, 3, limit=2)
        assert events.after(session, "job_none") == []
        newest = events.newest(session, job_id, "note")
        assert events.newest(session, job_id, "gossip") is None
    assert numbers == [2, 3, 4, 5, 6]
    assert [(e.seq, e.payload["i"]) for e in log] == [(4, 2), (5, 3)]
    assert newest is not None
    assert newest.seq == 6


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"loss": float("nan")}, {"loss": None}),
        ({"a": [1.5, float("inf"), {"b": float("-inf")}]}, {"a": [1.5, None, {"b": None}]}),
        ({"pair": (1, 2), 3: "x\u0000é"}, {"pair": [1, 2], "3": "x\u0000é"}),
    ],
)
def test_payloads_are_json(database: Database, written: Any, read: Any) -> None:
    job_id = store_job(database)
    with database.write() as session:
        number = events.append(session, job_id, "trial.progress", written)
    with database.read() as session:
        (event,) = events.after(session, job_id, number - 1)
    assert event.payload == read


def test_an_unknown_job_has_no_log(database: Database) -> None:
    with database.write() as session, pytest.raises(NotFound, match="job_none"):
        events.append(session, "job_none", "note", {})


def test_many_writers_leave_no_gap_and_readers_see_none(database: Database) -> None:
    job_id = store_job(database)
    errors: list[BaseException] = []
    gaps: list[list[int]] = []
    writing = threading.Event()
    writing.set()

    def write() -> None:
        try:
            for _ in range(EACH):
                with database.write() as session:
                    events.append(session, job_id, "note", {})
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        seen = 0
        while writing.is_set() or seen < THREADS * EACH + 1:
            with database.read() as session:
                new = [e.seq for e in events.after(session, job_id, seen)]
            if new != list(range(seen + 1, seen + 1 + len(new))):
                gaps.append(new)
                return
            seen += len(new)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write) for _ in range(THREADS)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    writing.clear()
    if errors:
        raise errors[0]
    reader.join(timeout=30)
    assert gaps == []
    assert not reader.is_alive()
