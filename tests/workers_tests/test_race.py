"""What a race writes down, without anything that drives it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from search.agent import Evaluate
from search.measurement import Failed, Infeasible, Measured
from search.trial import AttemptState, Fidelity, Trial, TrialState
from tests.memory_ledger import Book, MemoryLedger
from tests.workers_tests import small_job
from tests.workers_tests.small_job import context_in, widths, work
from tests.workers_tests.works import measured, plan_of
from workers import kept_recovery
from workers.context import JobContext
from workers.evaluate import evaluate
from workers.executor import CHECKPOINT, Finished
from workers.job import RaceMode, Recovery
from workers.kept_recovery import Kept
from workers.race import Entries, rung_shares
from workers.store import FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def proposed(ledger: MemoryLedger, count: int) -> list[Trial]:
    orders = [Evaluate(plan=plan_of(n + 1), fidelity=Fidelity.FULL) for n in range(count)]
    return list(ledger.propose(orders, agent="finalist", snapshot=None))


def test_who_falls_behind_ends_infeasible_with_its_scores(store: FolderStore) -> None:
    ledger = MemoryLedger(Book())
    entries = Entries(proposed(ledger, 2), ledger, store)
    first, second = entries.start(), entries.start()
    assert first is not None
    assert second is not None
    assert entries.start() is None
    entries.note(first, {"step": "race", "rung": 1, "of": 2, "score": 0.9})
    entries.note(second, {"step": "race", "rung": 1, "of": 2, "score": 0.4})
    entries.give_up(second, "outrun")
    entries.finish(Finished(work=second, outcome=measured(0.5)))  # Too late.
    entries.finish(Finished(work=first, outcome=measured(0.95)))
    won, lost = entries.ended()
    assert isinstance(won.outcome, Measured)
    assert lost.outcome == Infeasible("outrun")
    assert json.loads(store.get(lost.artifacts["race"])) == {"scores": [0.4]}
    again = Entries(ledger.trials(), ledger, store)
    assert again.scores == {won.id: [0.9], lost.id: [0.4]}
    assert again.waiting == 0
    assert again.ended() == [won, lost]


def test_a_lost_attempt_goes_on_at_its_checkpoint_and_its_scores(store: FolderStore) -> None:
    book = Book()
    ledger = MemoryLedger(book)
    entries = Entries(proposed(ledger, 1), ledger, store)
    begun = entries.start()
    assert begun is not None
    digest = store.put(Kept(scores=(0.7,)).to_bytes())
    entries.note(begun, {CHECKPOINT: digest})
    entries.lose(begun, "killed")
    entries.lose(begun, "killed")
    assert [a.state for a in book.attempts[begun.trial.id]] == [AttemptState.LOST]
    # Another conductor takes over.
    entries = Entries(ledger.trials(), ledger, store)
    assert entries.waiting == 1
    assert entries.scores == {begun.trial.id: []}
    going_on = entries.start()
    assert going_on is not None
    assert going_on.attempt.resume == digest
    assert entries.scores == {begun.trial.id: [0.7]}
    entries.lose_all("Ray died")
    assert book.trials[begun.trial.id].state is TrialState.PROPOSED


def test_a_retryable_failure_waits_again_and_a_cancelled_race_does_not(store: FolderStore) -> None:
    book = Book()
    ledger = MemoryLedger(book)
    entries = Entries(proposed(ledger, 1), ledger, store)
    begun = entries.start()
    assert begun is not None
    entries.finish(Finished(work=begun, outcome=Failed("disk full", retryable=True)))
    assert entries.waiting == 1
    book.wish = "cancel"
    entries.look()
    assert entries.waiting == 0
    assert entries.start() is None
    assert entries.ended() == []


def test_rungs_are_shares_of_one_recovery() -> None:
    assert rung_shares(2) == (0.25, 0.5)
    assert rung_shares(3) == pytest.approx((1 / 9, 1 / 3))


def test_many_finalists_race_unless_told_otherwise() -> None:
    assert not Recovery().raced
    assert Recovery(finalists=5).raced
    assert Recovery(race="asha").raced
    assert not Recovery(finalists=5, race="none").raced
    assert not Recovery(finalists=5, epochs=0).raced


def context(folder: Path, race: RaceMode) -> JobContext:
    found = context_in(folder)
    recovery = dataclasses.replace(small_job.SMALL_JOB.recovery, race=race)
    found.spec = dataclasses.replace(found.spec, recovery=recovery)
    return found


def test_looking_at_the_rungs_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_recovery, "CHECKPOINT_STEPS", 5)
    said: list[Mapping[str, Any]] = []
    given = work(widths(5, 6), Fidelity.FULL)
    raced = evaluate(given, context(tmp_path, "asha"), said.append)
    alone = evaluate(given, context(tmp_path, "none"), lambda _: None)
    assert raced.outcome == alone.outcome
    store = FolderStore(tmp_path / "blobs")
    both = [json.loads(store.get(f.artifacts["recovered"]))["parts"] for f in (raced, alone)]
    assert both[0] == both[1]
    rungs = [data for data in said if "rung" in data]
    assert [data["rung"] for data in rungs] == [1, 2]
    assert all(0.05 < data["score"] <= 1.0 for data in rungs)
    # Each was kept before it was told, so that nobody is judged on what a crash takes back.
    kept = [Kept.from_bytes(store.get(d[CHECKPOINT])).scores for d in said if CHECKPOINT in d]
    assert kept[:2] == [(rungs[0]["score"],), (rungs[0]["score"], rungs[1]["score"])]
    assert said.index(rungs[0]) == [CHECKPOINT in data for data in said].index(True) + 1
