"""A training whose process is killed goes on in another one, on a real Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from compression.artifact import Digest
from search.agent import Prepare
from search.measurement import Measured
from search.trial import PREPARED_ROLE, Attempt, AttemptState
from tests.memory_ledger import Book, MemoryLedger
from tests.workers_tests.small_job import FACTORY, SMALL_JOB, widths
from workers.loop import run_all
from workers.ray_executor import RayExecutor

pytestmark = pytest.mark.ray

STEPS = 300


class Killing(MemoryLedger):
    """Kills the process of the first attempt as soon as its second checkpoint is written down."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self.pids: list[int] = []
        self.checkpoints: list[tuple[int, Digest]] = []

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        super().event(kind, payload)
        if "pid" in payload:
            self.pids.append(payload["pid"])

    def keep(self, attempt: Attempt, checkpoint: Digest) -> None:
        super().keep(attempt, checkpoint)
        self.checkpoints.append((attempt.epoch, checkpoint))
        if attempt.epoch == 1 and len(self.checkpoints) == 2:
            os.kill(self.pids[-1], signal.SIGKILL)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[RayExecutor]:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    store = (tmp_path / "blobs").as_uri()
    executor = RayExecutor(SMALL_JOB, store, 1, quiet_folder=quiet, factory=FACTORY)
    yield executor
    executor.close()


def test_a_killed_training_goes_on_and_does_not_begin_anew(executor: RayExecutor) -> None:
    book = Book()
    ledger = Killing(book)
    order = Prepare(kind="finetune", plan=widths(5, 6), options={"steps": STEPS})
    (trial,) = ledger.propose([order], agent="x", snapshot=None)
    (done,) = run_all([trial], executor, ledger, parallelism=1)
    assert isinstance(done.outcome, Measured)
    assert PREPARED_ROLE in done.artifacts
    first, second = book.attempts[trial.id]
    assert (first.state, second.state) == (AttemptState.LOST, AttemptState.SUCCEEDED)
    assert second.resume == [digest for epoch, digest in ledger.checkpoints if epoch == 1][-1]
    assert len(set(ledger.pids)) == 2
    # The second process took the training up where the first one left it.
    steps = [p["done"] for kind, p in book.events if kind == "trial.progress" and "done" in p]
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
    assert len(steps) <= STEPS // 20 + 2
