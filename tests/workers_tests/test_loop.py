"""The search loop: record before tell, resume after a crash at any point, losses, endings."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from search.agent import Evaluate, Request, Snapshot
from search.budget import Budget
from search.measurement import Failed, Infeasible, Measured, Outcome
from search.trial import BASELINE_AGENT, FINISHED, AttemptState, Fidelity, Trial, TrialState
from tests.memory_ledger import Book, MemoryLedger
from tests.workers_tests.works import measured, plan_of
from workers.errors import LeaseLost
from workers.executor import Finished, InlineExecutor, Lost, Report, Work
from workers.ledger import Ledger
from workers.loop import Ending, run, run_all

SPACE = 40


class Crash(BaseException):
    """Stands for kill -9: nothing after it runs."""


class ToyAgent:
    """Asks for a width that follows from how often it asked and what it was told."""

    def __init__(self, on_tell: Callable[[Trial], None] = lambda trial: None) -> None:
        self.asked: list[int] = []
        self.told: list[tuple[int, str]] = []
        self._on_tell = on_tell

    def ask(self, n: int) -> Sequence[Request]:
        return [Evaluate(plan=plan_of(width)) for width in itertools.islice(self._widths(), n)]

    def _widths(self) -> Iterator[int]:
        while len(self.asked) < SPACE:
            text = repr((len(self.asked), sorted(self.told)))
            width = int(hashlib.sha256(text.encode()).hexdigest(), 16) % SPACE + 1
            while width in self.asked:
                width = width % SPACE + 1
            self.asked.append(width)
            yield width

    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self._on_tell(trial)
            self.told.append((trial.number, repr(trial.outcome)))

    def snapshot(self) -> Snapshot:
        return Snapshot({"asked": list(self.asked)})

    def restore(self, snapshot: Snapshot) -> None:
        self.asked = list(snapshot.data["asked"])


def width_of(trial: Trial) -> int:
    return trial.plan.prune_channels()["conv1"].keep_channels


def outcome_of(trial: Trial) -> Outcome:
    width = width_of(trial)
    if width % 5 == 0:
        return Infeasible("certificate refused")
    if width % 7 == 0:
        return Failed("diverged")
    return measured(width / 100)


def toy_runner(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
    report({"step": "score", "done": 1})
    return Finished(work=work, outcome=outcome_of(work.trial), seconds={"score": 1.0, "time": 0.25})


def go(
    ledger: Ledger, *, agent: ToyAgent | None = None, runner: Any = toy_runner, trials: int = 6
) -> Ending:
    return run(
        agent or ToyAgent(),
        InlineExecutor(runner),
        ledger,
        Budget(trials=trials),
        agent_name="toy",
        parallelism=2,
    )


def story(book: Book) -> list[tuple[Any, ...]]:
    """Return everything of the trials that a crash must not change."""
    return [
        (t.number, t.plan, t.fidelity, t.seed, t.agent, t.state, t.outcome, t.recorded)
        for t in book.trials.values()
    ]


@pytest.fixture
def undisturbed() -> Book:
    book = Book()
    assert go(MemoryLedger(book)) == "budget"
    return book


def test_a_search_takes_its_budget_and_records_every_trial(undisturbed: Book) -> None:
    trials = list(undisturbed.trials.values())
    assert [trial.number for trial in trials] == list(range(6))
    assert [trial.recorded for trial in trials] == list(range(6))
    assert all(trial.outcome == outcome_of(trial) for trial in trials)
    assert len({trial.plan.digest for trial in trials}) == 6
    assert undisturbed.device_s == 6 * 0.25
    progress = [payload for kind, payload in undisturbed.events if kind == "trial.progress"]
    assert [payload["trial_id"] for payload in progress] == [trial.id for trial in trials]


def test_an_outcome_is_recorded_before_the_agent_is_told() -> None:
    book = Book()
    seen: list[str] = []

    def on_tell(trial: Trial) -> None:
        assert book.trials[trial.id] == trial
        assert trial.state in FINISHED
        seen.append(trial.id)

    go(MemoryLedger(book), agent=ToyAgent(on_tell))
    assert seen == list(book.trials)


class Tripwire:
    """A ledger whose conductor dies before or after one of its calls."""

    def __init__(self, ledger: MemoryLedger, at: int, *, after: bool) -> None:
        self._ledger = ledger
        self._at = at
        self._after = after
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            here = len(self.calls) - 1 == self._at
            if here and not self._after:
                raise Crash
            result = method(*args, **kwargs)
            if here:
                raise Crash
            return result

        return call


def count_calls() -> int:
    wire = Tripwire(MemoryLedger(Book()), -1, after=False)
    go(wire)
    assert {"trials", "snapshot", "wish", "spent", "propose", "start", "record", "event"} == set(
        wire.calls
    )
    return len(wire.calls)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_ledger_call_changes_no_trial(undisturbed: Book, after: bool) -> None:
    for at in range(count_calls()):
        book = Book()
        with pytest.raises(Crash):
            go(Tripwire(MemoryLedger(book), at, after=after))
        book.owner = "second"
        agent = ToyAgent()
        assert go(MemoryLedger(book, "second"), agent=agent) == "budget"
        assert story(book) == story(undisturbed), f"call {at}"
        assert sorted(agent.told) == [
            (trial.number, repr(trial.outcome)) for trial in book.trials.values()
        ]
        attempts = [attempt for each in book.attempts.values() for attempt in each]
        assert len(attempts) in (6, 7)
        lost = [attempt for attempt in attempts if attempt.state is AttemptState.LOST]
        assert len(lost) == len(attempts) - 6
        assert not any(attempt.state is AttemptState.RUNNING for attempt in attempts)


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("where", ["ask", "tell", "run"])
def test_a_crash_of_agent_or_worker_changes_no_trial(
    undisturbed: Book, where: str, at: int
) -> None:
    calls = itertools.count()

    def trip(name: str) -> None:
        if name == where and next(calls) == at:
            raise Crash

    class Mortal(ToyAgent):
        def ask(self, n: int) -> Sequence[Request]:
            trip("ask")
            return super().ask(n)

        def tell(self, trials: Sequence[Trial]) -> None:
            trip("tell")
            super().tell(trials)

    def mortal_runner(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        trip("run")
        return toy_runner(work, report)

    book = Book()
    with pytest.raises(Crash):
        go(MemoryLedger(book), agent=Mortal(), runner=mortal_runner)
    assert go(MemoryLedger(book)) == "budget"
    assert story(book) == story(undisturbed)


def test_many_crashes_in_a_row_change_no_trial(undisturbed: Book) -> None:
    book = Book()
    for at in (3, 6, 7, 9, 8, 10, 5, 11):
        with pytest.raises(Crash):
            go(Tripwire(MemoryLedger(book), at, after=bool(at % 2)))
    assert go(MemoryLedger(book)) == "budget"
    assert story(book) == story(undisturbed)


class Losing(InlineExecutor):
    """Loses the given attempts, `(trial number, epoch)`."""

    def __init__(self, doomed: set[tuple[int, int]]) -> None:
        super().__init__(toy_runner)
        self._doomed = doomed

    def wait(self, timeout_s: float) -> Sequence[Report]:
        return [
            Lost(work=report.work, reason="killed")
            if isinstance(report, Finished)
            and (report.work.trial.number, report.work.attempt.epoch) in self._doomed
            else report
            for report in super().wait(timeout_s)
        ]


def go_losing(book: Book, doomed: set[tuple[int, int]]) -> Ending:
    return run(ToyAgent(), Losing(doomed), MemoryLedger(book), Budget(trials=6), agent_name="toy")


def test_a_lost_attempt_is_run_again(undisturbed: Book) -> None:
    book = Book()
    assert go_losing(book, {(0, 1), (3, 1), (3, 2)}) == "budget"
    assert story(book) == story(undisturbed)
    assert [a.state for a in book.attempts["trl_0000000000000003"]] == [
        AttemptState.LOST,
        AttemptState.LOST,
        book.attempts["trl_0000000000000003"][2].state,
    ]


def test_a_trial_whose_attempts_are_all_lost_fails_and_the_search_goes_on() -> None:
    book = Book()
    assert go_losing(book, {(1, 1), (1, 2), (1, 3)}) == "budget"
    trials = list(book.trials.values())
    assert trials[1].state is TrialState.FAILED
    assert isinstance(trials[1].outcome, Failed)
    assert "Attempt 3 of 3 was lost: killed" in trials[1].outcome.error
    assert len(trials) == 6
    assert all(trial.state in FINISHED for trial in trials)


def test_a_retryable_failure_is_run_again_and_told_once() -> None:
    book, told = Book(), []
    tries = itertools.count(1)

    def shaky(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        if work.trial.number == 0 and next(tries) < 3:
            return Finished(work=work, outcome=Failed("network", retryable=True))
        return Finished(work=work, outcome=measured(0.5))

    agent = ToyAgent(lambda trial: told.append(trial.number))
    assert go(MemoryLedger(book), agent=agent, runner=shaky, trials=2) == "budget"
    assert told == [0, 1]
    assert isinstance(book.trials["trl_0000000000000000"].outcome, Measured)
    assert len(book.attempts["trl_0000000000000000"]) == 3


@pytest.mark.parametrize("limit", [Budget(wall_s=3.5), Budget(device_s=0.75)])
def test_time_ends_a_search(limit: Budget) -> None:
    book, seconds = Book(), itertools.count()
    ledger = MemoryLedger(book, clock=lambda: float(next(seconds)))
    ending = run(ToyAgent(), InlineExecutor(toy_runner), ledger, limit, agent_name="toy")
    assert ending == "budget"
    # One look at the clock a trial, the first of which starts it; a quarter second of timing each.
    assert len(book.trials) == (4 if limit.wall_s else 3)


def test_an_exhausted_agent_ends_the_search() -> None:
    book = Book()
    assert go(MemoryLedger(book), trials=SPACE + 1) == "exhausted"
    assert len(book.trials) == SPACE
    assert all(trial.state in FINISHED for trial in book.trials.values())


def test_cancelling_stops_asking_and_keeps_what_is_recorded() -> None:
    book = Book()

    def on_tell(trial: Trial) -> None:
        if trial.number == 2:
            book.wish = "cancel"

    assert go(MemoryLedger(book), agent=ToyAgent(on_tell)) == "cancelled"
    assert [t.number for t in book.trials.values() if t.state in FINISHED] == [0, 1, 2]


def test_a_conductor_without_the_lease_stops_and_writes_nothing_more() -> None:
    book = Book()

    def on_tell(trial: Trial) -> None:
        if trial.number == 2:
            book.owner = "second"

    with pytest.raises(LeaseLost):
        go(MemoryLedger(book), agent=ToyAgent(on_tell))
    assert len(book.trials) == 3
    assert go(MemoryLedger(book, "second")) == "budget"
    assert len(book.trials) == 6


def test_the_agent_is_told_of_the_baseline_which_costs_no_budget() -> None:
    book = Book()
    ledger = MemoryLedger(book)
    dense = Evaluate(plan=plan_of(SPACE + 1))
    (baseline,) = ledger.propose([dense], agent=BASELINE_AGENT, snapshot=None)
    run_all([baseline], InlineExecutor(toy_runner), ledger, parallelism=1)
    agent = ToyAgent()
    assert go(ledger, agent=agent, trials=3) == "budget"
    assert [number for number, _ in agent.told] == [0, 1, 2, 3]
    assert ledger.spent().trials == 3


def test_nothing_else_happens_while_the_agent_thinks() -> None:
    inside: list[bool] = []
    thinking_now = False

    @contextmanager
    def thinking() -> Iterator[None]:
        nonlocal thinking_now
        thinking_now = True
        yield
        thinking_now = False

    class Watched(ToyAgent):
        def ask(self, n: int) -> Sequence[Request]:
            inside.append(thinking_now)
            return super().ask(n)

    def watched_runner(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        assert not thinking_now
        return toy_runner(work, report)

    run(
        Watched(),
        InlineExecutor(watched_runner),
        MemoryLedger(Book()),
        Budget(trials=3),
        agent_name="toy",
        thinking=thinking,
    )
    assert inside == [True] * 3


def finalists(ledger: MemoryLedger, count: int) -> Sequence[Trial]:
    requests = [
        Evaluate(plan=plan_of(width), fidelity=Fidelity.FULL) for width in range(1, count + 1)
    ]
    return ledger.propose(requests, agent="finalist", snapshot=None)


def test_given_trials_run_to_their_end_in_their_order() -> None:
    ledger = MemoryLedger(Book())
    executor = Losing({(1, 1), (2, 1), (2, 2), (2, 3)})
    ended = run_all(finalists(ledger, 4), executor, ledger, parallelism=2)
    assert [trial.number for trial in ended] == [0, 1, 2, 3]
    assert [trial.state for trial in ended] == [
        TrialState.MEASURED,
        TrialState.MEASURED,
        TrialState.FAILED,
        TrialState.MEASURED,
    ]
    again = run_all(ledger.trials(), InlineExecutor(lambda *_: None), ledger, parallelism=2)  # type: ignore[arg-type]
    assert again == ended


def test_given_trials_are_abandoned_on_cancel() -> None:
    book = Book(wish="cancel")
    ledger = MemoryLedger(book)
    assert run_all(finalists(ledger, 2), InlineExecutor(toy_runner), ledger, parallelism=1) == []
    assert not any(book.attempts.values())
