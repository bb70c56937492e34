"""Preparations and checkpoints in the loop: crashes change nothing, users see no digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from compression.artifact import Digest
from search.agent import Evaluate, Prepare, Request, Snapshot
from search.budget import Budget
from search.measurement import Failed, Measured, Measurement
from search.trial import (
    PREPARED_ROLE,
    Fidelity,
    Trial,
    TrialState,
)
from tests.memory_ledger import Book, MemoryLedger
from tests.workers_tests.test_loop import Crash, finalists
from tests.workers_tests.works import measured, plan_of
from workers.executor import CHECKPOINT, Finished, InlineExecutor, Work
from workers.loop import Ending, run, run_all


class Rounds:
    """Orders a preparation, holds back until it is told, then scores four plans on what it left."""

    def __init__(self) -> None:
        self.asked = 0
        self.told: dict[int, Trial] = {}
        self.calls: list[tuple[int, int]] = []

    def ask(self, n: int) -> Sequence[Request]:
        pending = self.asked - len(self.told)
        place = self.asked % 5
        answer: list[Request] = []
        if place == 0 and pending == 0:
            base = self._newest() if self.asked else None
            answer = [Prepare(kind="finetune", base=base, options={"steps": self.asked + 1})]
        elif place > 0 and (pending == 0 or place > 1):
            count = min(n, 5 - place)
            answer = [
                Evaluate(plan=plan_of(self.asked + i), base=self._newest()) for i in range(count)
            ]
        self.asked += len(answer)
        self.calls.append((n, len(answer)))
        return answer

    def _newest(self) -> Digest:
        prepared = [t for t in self.told.values() if t.fidelity is Fidelity.PREPARED]
        return max(prepared, key=lambda t: t.number).artifacts[PREPARED_ROLE]

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told.update({trial.number: trial for trial in trials})

    def snapshot(self) -> Snapshot:
        return Snapshot({"asked": self.asked})

    def restore(self, snapshot: Snapshot) -> None:
        self.asked = snapshot.data["asked"]


def preparing_runner(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
    if work.trial.fidelity is not Fidelity.PREPARED:
        return Finished(work=work, outcome=measured(0.5))
    artifact = Digest(f"{work.trial.number:064d}")
    outcome = Measured(Measurement(()), {"top1": 0.25})
    return Finished(work=work, outcome=outcome, artifacts={PREPARED_ROLE: artifact})


def go_in_rounds(book: Book, agent: Rounds, runner: Any = preparing_runner) -> Ending:
    budget = Budget(trials=8)
    executor = InlineExecutor(runner)
    executor.slots = 3
    return run(agent, executor, MemoryLedger(book), budget, agent_name="rounds", parallelism=3)


def test_preparations_count_against_no_budget_and_are_told() -> None:
    book, agent = Book(), Rounds()
    assert go_in_rounds(book, agent) == "budget"
    trials = list(book.trials.values())
    kinds = [t.fidelity for t in trials]
    assert kinds.count(Fidelity.PREPARED) == 2
    assert kinds.count(Fidelity.PROXY) == 8
    assert [t.base for t in trials[1:5]] == [trials[0].artifacts[PREPARED_ROLE]] * 4
    assert trials[5].base == trials[0].artifacts[PREPARED_ROLE]
    assert [t.base for t in trials[6:]] == [trials[5].artifacts[PREPARED_ROLE]] * 4
    assert sorted(agent.told) == list(range(10))
    first = agent.told[0].outcome
    assert isinstance(first, Measured)
    assert first.found == {"top1": 0.25}


def test_a_waiting_agent_is_asked_again_only_after_a_result() -> None:
    agent = Rounds()
    go_in_rounds(Book(), agent)
    held_back = sum(given < asked for asked, given in agent.calls)
    assert held_back <= len(agent.told)


@pytest.mark.parametrize("crash_at", range(10))
def test_a_crash_between_preparations_and_trials_changes_nothing(crash_at: int) -> None:
    whole, book = Book(), Book()
    go_in_rounds(whole, Rounds())

    def failing(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        if work.trial.number == crash_at and work.attempt.epoch == 1:
            raise Crash
        return preparing_runner(work, report)

    with pytest.raises(Crash):
        go_in_rounds(book, Rounds(), failing)
    assert go_in_rounds(book, Rounds(), failing) == "budget"
    assert sorted(t.plan.digest for t in book.trials.values()) == sorted(
        t.plan.digest for t in whole.trials.values()
    )
    assert {(t.number, t.base, t.fidelity) for t in book.trials.values()} == {
        (t.number, t.base, t.fidelity) for t in whole.trials.values()
    }


def test_an_agent_that_waits_for_nothing_ends_the_search() -> None:
    class Mute(Rounds):
        def ask(self, n: int) -> Sequence[Request]:
            return []

    assert go_in_rounds(Book(), Mute()) == "exhausted"


def test_the_next_attempt_gets_the_newest_checkpoint_and_watchers_none() -> None:
    book = Book()
    seen: list[Digest | None] = []

    def training(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        seen.append(work.attempt.resume)
        report({"step": "recover", "done": 20})
        report({CHECKPOINT: "e" * 64})
        report({CHECKPOINT: "f" * 64})
        retried = Failed("OSError: disk full", retryable=True)
        return Finished(work=work, outcome=retried if len(seen) == 1 else measured(0.5))

    (trial,) = finalists(MemoryLedger(book), 1)
    (done,) = run_all([trial], InlineExecutor(training), MemoryLedger(book), parallelism=1)
    assert done.state is TrialState.MEASURED
    assert seen == [None, Digest("f" * 64)]
    shown = [payload for kind, payload in book.events if kind == "trial.progress"]
    assert shown == [{"trial_id": trial.id, "step": "recover", "done": 20}] * 2
