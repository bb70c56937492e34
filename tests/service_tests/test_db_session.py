"""The database's doors: URLs, transactions, what kill -9 and readers may see."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from service.db import events
from service.db.columns import utc_now
from service.db.errors import DatabaseUrlInvalid
from service.db.session import Database
from service.db.tables import AttemptRow, EventRow, JobRow, TrialRow
from tests.contracts.ledger import one
from tests.service_tests.stored import open_ledger, store_job


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("no url", "malformed"),
        ("", "malformed"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file:x?mode=memory&uri=true", "names no file"),
        ("postgresql://user@host", "names no database"),
        ("mysql://u:secret@h/d", "of kind 'mysql'"),
    ],
)
def test_a_url_that_cannot_serve_is_refused(url: str, why: str) -> None:
    with pytest.raises(DatabaseUrlInvalid, match=why) as refused:
        Database(url)
    assert "secret" not in str(refused.value)


def test_postgres_urls_get_our_driver() -> None:
    for url in ("postgresql://u@h/d", "postgres://u@h/d", "postgresql+psycopg2://u@h/d"):
        assert Database(url).url.drivername == "postgresql+psycopg"


def test_the_folder_is_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a' / 'b' / 'x.db'}")
    database.migrate()
    database.ping()
    assert (tmp_path / "a" / "b" / "x.db").exists()
    database.close()


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)])
def test_sqlite_is_set_up_for_many_processes(tmp_path: Path, durable: bool, level: int) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}", durable=durable)
    with database.write() as session:
        found = {
            name: session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": level,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }
    database.close()


def test_a_reader_cannot_write(database: Database) -> None:
    job_id = store_job(database)
    with pytest.raises(DBAPIError, match=r"(?i)read.?only"), database.read() as session:
        events.append(session, job_id, "note", {})
    with database.write() as session:
        assert events.append(session, job_id, "note", {}) == 2


def test_a_reader_sees_one_moment(database: Database) -> None:
    job_id = store_job(database)
    with database.read() as reader:
        before = len(events.after(reader, job_id))
        with database.write() as writer:
            events.append(writer, job_id, "note", {})
        assert len(events.after(reader, job_id)) == before
    with database.read() as reader:
        assert len(events.after(reader, job_id)) == before + 1


def test_a_writer_waits_for_the_one_before(database: Database) -> None:
    job_id = store_job(database)
    order: list[str] = []
    holding = threading.Event()

    def second() -> None:
        holding.wait()
        with database.write() as session:
            number = events.append(session, job_id, "second", {})
            order.append(f"second {number}")

    thread = threading.Thread(target=second)
    thread.start()
    with database.write() as session:
        number = events.append(session, job_id, "first", {})
        holding.set()
        thread.join(timeout=0.3)
        order.append(f"first {number}")
    thread.join()
    assert order == ["first 2", "second 3"]


def test_moments_are_utc_and_aware(database: Database) -> None:
    before = utc_now()
    store_job(database)
    with database.read() as session:
        at = session.scalar(select(EventRow.at))
    assert at is not None
    assert at.utcoffset() is not None
    assert before <= at <= utc_now()


def test_the_database_itself_forbids_a_second_live_attempt(database: Database) -> None:
    store_job(database)
    ledger = open_ledger(database)
    attempt = ledger.start(one(ledger))
    second = AttemptRow(
        id="att_2",
        trial_id=attempt.trial_id,
        epoch=2,
        state=attempt.state,
        owner="x",
        started_at=utc_now(),
    )
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(second)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trials SET state = 'DONE'",
        "UPDATE jobs SET state = 'PAUSED'",
        "UPDATE jobs SET wish = 'stop'",
        "UPDATE trials SET job_id = 'job_none'",
        "DELETE FROM jobs",
        "INSERT INTO events SELECT * FROM events",
    ],
)
def test_the_database_itself_refuses_what_makes_no_sense(
    database: Database, statement: str
) -> None:
    store_job(database)
    one(open_ledger(database))
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text(statement))
    with database.read() as session:
        assert session.scalar(select(JobRow.state)) == "QUEUED"
        assert session.scalar(select(TrialRow.state)) == "PROPOSED"
