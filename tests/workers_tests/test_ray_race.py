"""The finalists' race on a real Ray Tune: verdicts, and what deaths of its processes change."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compression.artifact import Digest
from compression.plan import Plan
from search.agent import Evaluate
from search.measurement import Infeasible, Measured
from search.trial import Attempt, AttemptState, Fidelity, Trial
from tests.memory_ledger import Book, MemoryLedger
from tests.workers_tests.small_job import FACTORY, SMALL_JOB, widths
from workers.errors import LeaseLost
from workers.job import JobSpec
from workers.kept_recovery import Kept
from workers.loop import run_all
from workers.ray_executor import RayExecutor
from workers.ray_race import Court, RayRace
from workers.store import FolderStore

pytestmark = pytest.mark.ray

RACED = dataclasses.replace(
    SMALL_JOB, recovery=dataclasses.replace(SMALL_JOB.recovery, epochs=2.5, race="asha")
)
# The first and best goes first; the last has too little left to keep up.
PLANS = (widths(7, 8), widths(6, 7), widths(1, 1, "block2"))


class Watched(MemoryLedger):
    """Calls back at every event and checkpoint."""

    def __init__(self, book: Book, saw: Callable[[str, Any], None] = lambda *_: None) -> None:
        super().__init__(book)
        self.saw = saw

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        super().event(kind, payload)
        self.saw("event", payload)

    def keep(self, attempt: Attempt, checkpoint: Digest) -> None:
        super().keep(attempt, checkpoint)
        self.saw("keep", (attempt, checkpoint))


def executor_of(spec: JobSpec, folder: Path) -> RayExecutor:
    quiet = folder / "quiet"
    quiet.mkdir(exist_ok=True)
    store = (folder / "blobs").as_uri()
    return RayExecutor(spec, store, 1, quiet_folder=quiet, factory=FACTORY)


def proposed(ledger: MemoryLedger, plans: Sequence[Plan] = PLANS) -> Sequence[Trial]:
    orders = [Evaluate(plan=plan, fidelity=Fidelity.FULL) for plan in plans]
    return ledger.propose(orders, agent="finalist", snapshot=None)


def all_rivals(trials: Sequence[Trial]) -> dict[str, frozenset[str]]:
    return {one.id: frozenset(t.id for t in trials if t is not one) for one in trials}


def parts(trial: Trial, folder: Path) -> Any:
    return json.loads(FolderStore(folder / "blobs").get(trial.artifacts["recovered"]))["parts"]


def test_winners_are_what_they_are_without_a_race_and_losers_say_so(tmp_path: Path) -> None:
    executor = executor_of(RACED, tmp_path)
    try:
        book = Book()
        ledger = Watched(book)
        trials = proposed(ledger)
        race = RayRace(executor, FolderStore(tmp_path / "blobs"), 2)
        ended = race.run(trials, all_rivals(trials), ledger)
        assert [t.id for t in ended] == [t.id for t in trials]
        assert isinstance(ended[0].outcome, Measured)
        loser = ended[-1]
        assert isinstance(loser.outcome, Infeasible)
        assert "outrun: after 0.25 of its recovery it scored" in loser.outcome.reason
        assert set(loser.artifacts) == {"race"}
        assert len({p["pid"] for _, p in book.events if "pid" in p}) == len(trials)
        # A second conductor finds nothing to do.
        assert race.run(ledger.trials(), all_rivals(trials), ledger) == ended
        assert [len(attempts) for attempts in book.attempts.values()] == [1] * len(trials)
    finally:
        executor.close()

    unraced = dataclasses.replace(RACED.recovery, race="none")
    plain = executor_of(dataclasses.replace(RACED, recovery=unraced), tmp_path)
    try:
        alone = MemoryLedger(Book())
        expected = run_all(proposed(alone)[:1], plain, alone, parallelism=1)
    finally:
        plain.close()
    assert parts(ended[0], tmp_path) == parts(expected[0], tmp_path)


def test_a_killed_process_and_a_lost_driver_cost_no_step(tmp_path: Path) -> None:
    book = Book()
    seen: list[Digest] = []
    pids: list[int] = []

    def murderous(kind: str, what: Any) -> None:
        if kind == "event" and "pid" in what:
            pids.append(what["pid"])
        if kind == "keep":
            seen.append(what[1])
            if len(seen) == 2:
                os.kill(pids[-1], signal.SIGKILL)
            if len(seen) == 5:
                raise LeaseLost("the driver dies here")

    executor = executor_of(RACED, tmp_path)
    store = FolderStore(tmp_path / "blobs")
    try:
        ledger = Watched(book, murderous)
        trials = proposed(ledger, PLANS[:1])
        with pytest.raises(LeaseLost, match="the driver dies here"):
            RayRace(executor, store, 2).run(trials, all_rivals(trials), ledger)
        after = Watched(book)
        (ended,) = RayRace(executor, store, 2).run(after.trials(), all_rivals(trials), after)
    finally:
        executor.close()
    assert isinstance(ended.outcome, Measured)
    attempts = book.attempts[ended.id]
    lost, done = AttemptState.LOST, AttemptState.SUCCEEDED
    assert [a.state for a in attempts] == [lost, lost, done]
    assert attempts[1].resume == seen[1]
    assert attempts[2].resume == seen[4]
    assert len(Kept.from_bytes(store.get(seen[4])).scores) >= 1
    steps = [p["done"] for _, p in book.events if p.get("step") == "recover"]
    assert steps == sorted(set(steps))
    # A score is kept before it is told, so that none is lost.
    rungs = [p["rung"] for _, p in book.events if "rung" in p]
    assert rungs == sorted(set(rungs))
    assert len(json.loads(store.get(ended.artifacts["race"]))["scores"]) == 2


@pytest.mark.slow
def test_a_race_outlives_its_ray(tmp_path: Path) -> None:
    book = Book()
    seen: list[Digest] = []
    pids: list[int] = []

    def murderous(kind: str, what: Any) -> None:
        if kind == "event" and "pid" in what:
            pids.append(what["pid"])
        if kind == "keep":
            seen.append(what[1])
            if len(seen) == 2:
                # Else it may be through before it misses its raylet.
                os.kill(pids[0], signal.SIGSTOP)
                os.kill(executor.cluster.processes()["raylet"].pid, signal.SIGKILL)

    executor = executor_of(RACED, tmp_path)
    try:
        ledger = Watched(book, murderous)
        trials = proposed(ledger, PLANS[:1])
        race = RayRace(executor, FolderStore(tmp_path / "blobs"), 2)
        (ended,) = race.run(trials, all_rivals(trials), ledger)
    finally:
        executor.close()
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(pids[0], signal.SIGKILL)
    assert isinstance(ended.outcome, Measured)
    attempts = book.attempts[ended.id]
    assert [a.state for a in attempts] == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert attempts[1].resume in seen[1:]


def test_a_court_stops_who_is_behind_the_better_half_of_its_rivals() -> None:
    court = Court("me", frozenset({"a", "b", "c"}), 2)
    for who, score in (("a", 0.9), ("b", 0.7), ("c", 0.6), ("stranger", 1.0)):
        assert court.takes(who, 1, score) or who in "bc"
    assert not court.takes("me", 1, 0.69)
    assert court.takes("me", 2, 0.1)  # Nobody else got so far.
    assert Court("me", frozenset(), 2).takes("me", 1, 0.0)
