"""The SQL memory: the contract, on every database, and between processes that write at once."""

from __future__ import annotations

import threading

import pytest

from service.db.evaluations import SqlMemory
from service.db.session import Database
from tests.contracts.ledger import plan_of
from tests.contracts.memory import MemoryContract, entry, key_of, put
from tests.service_tests.stored import Clock


class Ticking(Clock):
    """A clock on which no two moments are the same."""

    def __call__(self) -> object:  # type: ignore[override]
        self.advance(1.0)
        return super().__call__()


class TestSqlMemory(MemoryContract):
    """On SQLite, and on PostgreSQL under its marker."""

    @pytest.fixture
    def memory(self, database: Database) -> SqlMemory:
        return SqlMemory(database, Ticking())  # type: ignore[arg-type]


def test_it_outlives_whoever_wrote_it(database: Database) -> None:
    put(SqlMemory(database), 1)
    assert SqlMemory(database).find(key_of(plan_of(1))) == entry(1)


def test_conductors_may_learn_the_same_at_once(database: Database) -> None:
    start = threading.Barrier(4)

    def write() -> None:
        start.wait()
        put(SqlMemory(database), *range(1, 9))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory = SqlMemory(database)
    assert all(memory.find(key_of(plan_of(keep))) == entry(keep) for keep in range(1, 9))
