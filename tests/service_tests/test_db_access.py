"""API keys and idempotency keys."""

from __future__ import annotations

import datetime
import threading

import pytest
from sqlalchemy import select

from service.db import api_keys, idempotency
from service.db.errors import KeyInFlight, KeyReused, NotFound
from service.db.idempotency import Answer
from service.db.session import Database
from service.db.tables import ApiKeyRow
from tests.service_tests.stored import START

ANSWER = Answer(status=202, headers={"Location": "/api/v1/jobs/job_1"}, body={"id": "job_1"})


def later(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def test_a_key_opens_with_its_text_only(database: Database) -> None:
    with database.write() as session:
        key, text = api_keys.create(session, name="ci", scopes=["jobs:write", "jobs:read"])
    prefix = text.rpartition(key.prefix)[0] + key.prefix
    with database.read() as session:
        assert api_keys.verify(session, text) == key
        wrong = [text[:-1], text + "x", prefix + "_", "", "ppk", "x" + text, "ppk__", "ppk_a_b"]
        assert [api_keys.verify(session, t) for t in wrong] == [None] * len(wrong)
        stored = session.scalars(select(ApiKeyRow)).one()
        secret = text.removeprefix(f"ppk_{key.prefix}_")
        assert len(secret) >= 43
        assert secret not in str(vars(stored))
    assert key.scopes == ("jobs:write", "jobs:read")


def test_an_expired_or_revoked_key_opens_nothing(database: Database) -> None:
    with database.write() as session:
        _, brief = api_keys.create(session, name="brief", scopes=[], expires_at=later(10))
        key, text = api_keys.create(session, name="ci", scopes=[])
        assert api_keys.verify(session, brief, now=later(9)) is not None
        assert api_keys.verify(session, brief, now=later(10)) is None
        revoked = api_keys.revoke(session, key.id)
        assert api_keys.verify(session, text) is None
        assert api_keys.revoke(session, key.id) == revoked
        assert [k.name for k in api_keys.everything(session)] == ["brief", "ci"]
        with pytest.raises(NotFound, match="key_none"):
            api_keys.revoke(session, "key_none")


def test_a_request_that_comes_twice_is_answered_twice(database: Database) -> None:
    with database.write() as session:
        assert idempotency.begin(session, "k", request_digest="a", now=START) is None
        idempotency.finish(session, "k", ANSWER)
    with database.read() as session:
        assert idempotency.get(session, "k", request_digest="a", now=later(1)) == ANSWER
        assert idempotency.get(session, "other", request_digest="a") is None
    with database.write() as session:
        assert idempotency.begin(session, "k", request_digest="a", now=later(1)) == ANSWER


def test_another_request_with_the_key_is_refused(database: Database) -> None:
    with database.write() as session:
        idempotency.begin(session, "k", request_digest="a", now=START)
        idempotency.finish(session, "k", ANSWER)
        with pytest.raises(KeyReused, match="'k'"):
            idempotency.begin(session, "k", request_digest="b", now=START)
        assert idempotency.begin(session, "k", request_digest="b", principal="p", now=START) is None


def test_an_unanswered_request_is_in_flight(database: Database) -> None:
    with database.write() as session:
        idempotency.begin(session, "k", request_digest="a", now=START)
    with database.read() as session, pytest.raises(KeyInFlight, match="'k'"):
        idempotency.get(session, "k", request_digest="a", now=START)
    with database.write() as session, pytest.raises(NotFound):
        idempotency.finish(session, "other", ANSWER)


def test_an_answer_is_forgotten_after_its_time(database: Database) -> None:
    with database.write() as session:
        idempotency.begin(session, "k", request_digest="a", keep_s=60, now=START)
        idempotency.finish(session, "k", ANSWER)
        assert idempotency.get(session, "k", request_digest="b", now=later(60)) is None
        assert idempotency.begin(session, "k", request_digest="b", now=later(60)) is None
        assert idempotency.expire(session, now=later(59)) == 0
        assert idempotency.expire(session, now=later(60 + idempotency.KEEP_S)) == 1


def test_what_failed_may_be_tried_again(database: Database) -> None:
    def crash() -> None:
        with database.write() as session:
            idempotency.begin(session, "k", request_digest="a", now=START)
            raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        crash()
    with database.write() as session:
        assert idempotency.begin(session, "k", request_digest="a", now=START) is None


def test_of_two_requests_at_once_one_is_done(database: Database) -> None:
    gate = threading.Barrier(4)
    done: list[str] = []
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def request(name: str) -> None:
        try:
            gate.wait()
            with database.write() as session:
                answer = idempotency.begin(session, "k", request_digest="a", now=START)
                if answer is None:
                    done.append(name)
                    idempotency.finish(session, "k", ANSWER)
                else:
                    answers.append(answer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=request, args=(f"r{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(done) == 1
    assert answers == [ANSWER] * 3
