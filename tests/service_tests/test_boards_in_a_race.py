"""Finalists that race wait for boards only at their end: real orders, a real ledger and store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compression.artifact import Digest
from search.measurement import Failed, Infeasible, Measured
from search.trial import AttemptState, TrialState
from service.db import timing_orders
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.db.timing_orders import LEASE_S
from service.db.timing_queue import SqlTimingQueue
from tests.service_tests.boards import DEVICE, add_agent, job_with_trials, spec, times_npz
from tests.service_tests.stored import Clock, open_ledger
from tests.workers_tests.works import measured
from workers.executor import Finished, Work
from workers.race import Entries
from workers.remote_timing import ROLE, BoardWait
from workers.store import FolderStore


class Track:
    """A race of two, and a board that the test plays."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.clock, self.store = database, Clock(), FolderStore(folder)
        self.job, _ = job_with_trials(database, self.clock, 2)

    def drive(self, owner: str) -> tuple[SqlLedger, Entries]:
        """Take the race up as another conductor."""
        self.clock.advance(31.0)
        ledger = open_ledger(self.database, owner, self.clock)
        ledger.abandon("its conductor died")
        queue = SqlTimingQueue(self.database, self.job, self.clock)
        boards = BoardWait(queue, self.store, [spec()])
        return ledger, Entries(ledger.trials(), ledger, self.store, None, boards)

    def finished(self, work: Work) -> Finished:
        """Return what a worker hands over."""
        parts = {
            "onnxruntime.candidate": self.store.put(work.trial.id.encode()),
            "onnxruntime.baseline": self.store.put(b"dense"),
            "probe": self.store.put(b"probe"),
        }
        document = {"parts": parts, "compare": "values", "seed": 3, "width": 0.05,
                    "max_seconds": 2.0, "metrics": {}}  # fmt: skip
        manifest = self.store.put(json.dumps(document).encode())
        artifacts = {ROLE: manifest, "recovered": Digest("9" * 64)}
        return Finished(work=work, outcome=measured(0.9), artifacts=artifacts)

    def answer(self, failure: str | None = None) -> bool:
        """Answer one order; whether there was one."""
        agent = add_agent(self.database, "a", self.clock)
        with self.database.write() as session:
            order = timing_orders.lease(session, agent, self.clock())
        if order is None:
            return False
        assert LEASE_S > 4.0
        self.clock.advance(4.0)
        baseline = 1.0 + 0.01 * np.random.default_rng(0).random((8, 20))
        with self.database.write() as session:
            timing_orders.finish(
                session,
                order.id,
                order.agent,
                order.attempt,
                times=None if failure else self.store.put(times_npz(baseline / 2, baseline)),
                readings=[],
                failure=failure,
                now=self.clock(),
            )
        return True


@pytest.fixture
def track(database: Database, tmp_path: Path) -> Track:
    return Track(database, tmp_path / "blobs")


def begun(entries: Entries) -> Work:
    work = entries.start()
    assert work is not None
    return work


def test_who_recovered_waits_for_its_board_and_has_no_process_to_lose(track: Track) -> None:
    ledger, entries = track.drive("second")
    first, second = begun(entries), begun(entries)
    entries.note(first, {"step": "race", "rung": 1, "of": 2, "score": 0.9})
    entries.finish(track.finished(first))
    assert entries.timed == {first.trial.id}
    entries.give_up(second, "outrun")
    entries.lose(first, "the process of the race died")
    entries.lose_all("the race's Ray died")
    entries.look()
    assert entries.timed == {first.trial.id}
    assert track.answer()
    assert not track.answer()  # Nothing was ordered for the one that was given up.
    entries.look()
    assert (entries.timed, entries.waiting) == (frozenset(), 0)
    won, lost = entries.ended()
    assert lost.outcome == Infeasible("outrun")
    assert isinstance(won.outcome, Measured)
    latency = won.outcome.measurement.get("latency_ms", DEVICE, "p50")
    assert latency is not None
    assert latency.ratio is not None
    assert latency.ratio.value == pytest.approx(0.5)
    assert json.loads(track.store.get(won.artifacts["race"])) == {"scores": [0.9]}
    assert list(ledger.trials()) == [won, lost]


def test_the_next_conductor_orders_nothing_twice(track: Track) -> None:
    _, entries = track.drive("second")
    first = begun(entries)
    entries.finish(track.finished(first))
    assert track.answer()
    ledger, entries = track.drive("third")
    assert entries.waiting == 2
    works = {work.trial.id: work for work in (begun(entries), begun(entries))}
    assert works[first.trial.id].attempt.epoch == 2
    entries.finish(track.finished(works[first.trial.id]))
    entries.look()
    assert [trial.id for trial in entries.ended()] == [first.trial.id]
    assert not track.answer()
    assert ledger.trials()[0].state is TrialState.MEASURED


def test_a_board_that_fails_sends_its_trial_back_into_the_race(track: Track) -> None:
    _, entries = track.drive("second")
    first, second = begun(entries), begun(entries)
    entries.finish(track.finished(first))
    entries.finish(Finished(work=second, outcome=Failed("no", retryable=False)))
    assert track.answer("outputs differ")
    entries.look()
    assert entries.waiting == 1
    again = begun(entries)
    assert (again.trial.id, again.attempt.state) == (first.trial.id, AttemptState.RUNNING)
    entries.finish(track.finished(again))
    assert track.answer()
    entries.look()
    assert isinstance(entries.ended()[0].outcome, Measured)


def test_a_cancelled_race_waits_for_nobody(track: Track) -> None:
    _, entries = track.drive("second")
    entries.finish(track.finished(begun(entries)))
    entries.cancelled = True
    assert (entries.timed, entries.waiting) == (frozenset(), 0)
