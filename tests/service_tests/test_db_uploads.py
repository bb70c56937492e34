"""Models and datasets: scanned once, by one scanner, then immutable."""

from __future__ import annotations

import datetime
from types import ModuleType
from typing import Any

import pytest

from service.db import datasets, models, scanning
from service.db.errors import CursorInvalid, NotFound
from service.db.session import Database
from service.scan_state import ScanState
from tests.service_tests.stored import DATASET, MODEL, START
from workers.errors import LeaseLost

KINDS: list[tuple[ModuleType, Any]] = [(models, MODEL), (datasets, DATASET)]
both = pytest.mark.parametrize(("kind", "artifact"), KINDS, ids=["models", "datasets"])
READY: dict[ModuleType, dict[str, Any]] = {
    models: {"survey": {"sites": []}, "summary": {"params": 3}},
    datasets: {"summary": {"rows": 3}},
}


def later(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


@both
def test_what_is_stored_comes_back(database: Database, kind: ModuleType, artifact: Any) -> None:
    with database.write() as session:
        created = kind.create(session, name="mine", artifact=artifact)
    with database.read() as session:
        stored = kind.get(session, created.id)
    assert stored == created
    assert (stored.artifact, stored.state, stored.name) == (artifact, ScanState.SCANNING, "mine")
    assert stored.summary is None
    assert stored.problem is None


@both
def test_an_unknown_one_is_not_found(database: Database, kind: ModuleType, artifact: Any) -> None:
    with database.write() as session:
        with pytest.raises(NotFound, match="none"):
            kind.get(session, "none")
        with pytest.raises(NotFound, match="none"):
            kind.set_ready(session, "none", **READY[kind])


@both
def test_pages_are_newest_first(database: Database, kind: ModuleType, artifact: Any) -> None:
    with database.write() as session:
        ids = [kind.create(session, name="x", artifact=artifact).id for _ in range(5)]
        seen, cursor = [], None
        while True:
            page = kind.page(session, cursor=cursor, limit=2)
            seen += [item.id for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == ids[::-1]
        with pytest.raises(CursorInvalid):
            kind.page(session, cursor="WzEsImpvYnMiLCJhIiwiYiJd")


@both
def test_each_is_claimed_once_oldest_first(
    database: Database, kind: ModuleType, artifact: Any
) -> None:
    with database.write() as session:
        ids = [kind.create(session, name="x", artifact=artifact).id for _ in range(2)]
        claimed = [kind.claim_scanning(session, "s", 60.0, now=START) for _ in range(3)]
    assert [c and c.id for c in claimed] == [*ids, None]


@both
def test_a_scan_whose_scanner_died_is_claimed_again_and_fenced(
    database: Database, kind: ModuleType, artifact: Any
) -> None:
    with database.write() as session:
        row_id = kind.create(session, name="x", artifact=artifact).id
        kind.claim_scanning(session, "first", 60.0, now=START)
        assert kind.claim_scanning(session, "second", 60.0, now=later(59)) is None
        assert kind.claim_scanning(session, "second", 60.0, now=later(60)).id == row_id
        with pytest.raises(LeaseLost, match="second"):
            kind.set_ready(session, row_id, **READY[kind], owner="first")
        assert kind.set_ready(session, row_id, **READY[kind], owner="second").state == "READY"
        with pytest.raises(LeaseLost, match="READY"):
            kind.set_rejected(session, row_id, "too late")


@both
def test_what_kills_every_scanner_is_rejected(
    database: Database, kind: ModuleType, artifact: Any
) -> None:
    with database.write() as session:
        row_id = kind.create(session, name="x", artifact=artifact).id
        for life in range(scanning.MAX_SCANS):
            claimed = kind.claim_scanning(session, f"s{life}", 60.0, now=later(100 * life))
            assert claimed.id == row_id
        assert kind.claim_scanning(session, "s", 60.0, now=later(1000)) is None
        stored = kind.get(session, row_id)
    assert stored.state is ScanState.REJECTED
    assert stored.problem is not None
    assert str(scanning.MAX_SCANS) in stored.problem["detail"]


@both
@pytest.mark.parametrize("problem", ["key 'fc' is missing", {"title": "t", "detail": "d"}])
def test_a_rejected_one_says_why(
    database: Database, kind: ModuleType, artifact: Any, problem: Any
) -> None:
    with database.write() as session:
        row_id = kind.create(session, name="x", artifact=artifact).id
        stored = kind.set_rejected(session, row_id, problem)
        assert kind.claim_scanning(session, "s") is None
    assert stored.state is ScanState.REJECTED
    assert stored.problem == ({"detail": problem} if isinstance(problem, str) else problem)


def test_a_ready_model_has_its_survey(database: Database) -> None:
    with database.write() as session:
        row_id = models.create(session, name="x", artifact=MODEL).id
        assert models.survey(session, row_id) is None
        stored = models.set_ready(session, row_id, survey={"sites": [1]}, summary={"params": 3})
    with database.read() as session:
        assert models.survey(session, row_id) == {"sites": [1]}
        with pytest.raises(NotFound):
            models.survey(session, "mdl_none")
    assert stored.summary == {"params": 3}
