"""Hopeless proposals are told apart from the readings so far, recorded and not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from compression.cost import CostTable
from compression.decisions import Decision, PruneChannels, Quantize
from compression.layer_cost import LayerCost
from compression.plan import Plan
from search.agent import Evaluate, Request, Snapshot
from search.budget import Budget
from search.history import Told
from search.measurement import Infeasible, Interval, Measured, Measurement, Reading
from search.objective import Constraint
from search.trial import BASELINE_AGENT, MEMORY_AGENT, Fidelity, Trial, TrialState
from tests.memory_ledger import Book, MemoryLedger
from workers.executor import Finished, InlineExecutor, Work
from workers.latency_book import PRUNED, LatencyBook
from workers.loop import Ending, run

DEVICE = "local/onnxruntime"
WIDTH = 64
BOUND = 0.5

COSTS = CostTable(
    (
        LayerCost(
            name="conv1",
            op="conv",
            in_channels=3,
            out_channels=WIDTH,
            kernel=9,
            positions=256,
            grid_in=(16, 16),
            grid_out=(16, 16),
            out_ties=(("conv1", 1),),
        ),
        LayerCost(
            name="conv2",
            op="conv",
            in_channels=WIDTH,
            out_channels=WIDTH,
            kernel=9,
            positions=256,
            grid_in=(16, 16),
            grid_out=(16, 16),
            in_ties=(("conv1", 1),),
            out_ties=(("conv2", 1),),
        ),
        LayerCost(
            name="fc", op="linear", in_channels=WIDTH, out_channels=10, in_ties=(("conv2", 1),)
        ),
    ),
    {"conv1": WIDTH, "conv2": WIDTH},
)


def plan_of(first: int, second: int, *, int8: bool = False) -> Plan:
    decisions: dict[str, list[Decision]] = {
        "conv1": [PruneChannels(keep_channels=first)],
        "conv2": [PruneChannels(keep_channels=second)],
        "model": [Quantize()] if int8 else [],
    }
    return Plan.of(decisions)


def ratio_of(plan: Plan) -> float:
    """A device on which time is a tenth by itself and the rest by multiply-adds."""
    return 0.1 + 0.9 * COSTS.cost(plan).macs / COSTS.cost(Plan()).macs


def latency(ratio: float, *, estimated: bool = False) -> Measured:
    reading = Reading(
        metric="latency_ms",
        value=2 * ratio,
        low=1.96 * ratio,
        high=2.04 * ratio,
        device=DEVICE,
        statistic="p50",
        ratio=Interval(value=ratio, low=0.98 * ratio, high=1.02 * ratio),
        estimated=estimated,
    )
    return Measured(Measurement((reading,)))


BASELINE = latency(1.0).measurement


def bound(at_most: float = BOUND, relative_to: str | None = "baseline") -> Constraint:
    return Constraint(
        metric="latency_ms",
        at_most=at_most,
        relative_to="baseline" if relative_to else None,
        device=DEVICE,
        statistic="p50",
    )


def trial_of(number: int, plan: Plan, outcome: Measured | None = None) -> Trial:
    return Trial(
        id=f"trl_{number}",
        number=number,
        plan=plan,
        fidelity=Fidelity.PROXY,
        seed=0,
        agent="toy",
        state=TrialState.MEASURED if outcome else TrialState.PROPOSED,
        outcome=outcome,
    )


def drawn(count: int, seed: int = 0) -> list[Plan]:
    rng = np.random.default_rng(seed)
    found: dict[str, Plan] = {}
    while len(found) < count:
        plan = plan_of(*(int(width) * 4 for width in rng.integers(1, WIDTH // 4, 2)))
        found[plan.digest] = plan
    return list(found.values())


def taught(plans: Iterable[Plan], constraint: Constraint) -> LatencyBook:
    book = LatencyBook(COSTS, (constraint,), BASELINE)
    for number, plan in enumerate(plans):
        book.learn(trial_of(number, plan, latency(ratio_of(plan))))
    return book


def test_a_plan_far_above_the_bound_is_hopeless_and_one_below_is_not() -> None:
    book = taught(drawn(30), bound())
    found = book.hopeless(trial_of(99, plan_of(63, 62)))
    assert found is not None
    assert f"latency_ms@{DEVICE}:p50" in found.reason
    assert "above the bound of 0.500" in found.reason
    assert book.hopeless(trial_of(99, plan_of(18, 18))) is None


@pytest.mark.parametrize("count", [0, 14])
def test_nothing_is_hopeless_before_enough_was_measured(count: int) -> None:
    plans = drawn(count)
    book = taught(plans, bound())
    assert book.hopeless(trial_of(99, plan_of(63, 62))) is None
    assert all(book.hopeless(trial_of(99, plan)) is None for plan in plans)


def test_a_precision_that_was_never_timed_is_not_judged() -> None:
    book = taught(drawn(30), bound())
    assert book.hopeless(trial_of(99, plan_of(63, 62, int8=True))) is None


def test_only_proxies_of_the_job_s_own_model_are_judged() -> None:
    book = taught(drawn(30), bound())
    hopeless = trial_of(99, plan_of(63, 62))
    for fidelity in (Fidelity.SHORT, Fidelity.FULL, Fidelity.CONFIRMED):
        other = Trial(
            id="trl_99", number=99, plan=hopeless.plan, fidelity=fidelity, seed=0, agent="toy"
        )
        assert book.hopeless(other) is None
    assert book.hopeless(trial_of(99, Plan())) is None


def test_estimates_teach_nothing() -> None:
    book = LatencyBook(COSTS, (bound(),), BASELINE)
    for number, plan in enumerate(drawn(30)):
        book.learn(trial_of(number, plan, latency(ratio_of(plan), estimated=True)))
    assert book.hopeless(trial_of(99, plan_of(63, 62))) is None


def test_a_bound_in_milliseconds_counts_from_the_fastest_dense_time() -> None:
    # The dense model takes 2 ms here: 1 ms is a half of it.
    book = taught(drawn(30), bound(1.0, relative_to=None))
    assert book.hopeless(trial_of(99, plan_of(63, 62))) is not None
    assert book.hopeless(trial_of(99, plan_of(18, 18))) is None


class Reciting:
    """Asks for given plans in turn."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = list(plans)
        self._asked = 0
        self.told: list[Trial] = []

    def ask(self, n: int) -> Sequence[Request]:
        wanted = self._plans[self._asked : self._asked + n]
        self._asked += len(wanted)
        return [Evaluate(plan=plan) for plan in wanted]

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told += trials

    def snapshot(self) -> Snapshot:
        return Snapshot({"asked": self._asked})

    def restore(self, snapshot: Snapshot) -> None:
        self._asked = snapshot.data["asked"]


class Stopped(BaseException):
    """Stands for kill -9."""


def search(
    book: Book, agent: Reciting, *, dies_at: int | None = None, prune: bool = True
) -> tuple[Ending, list[int]]:
    """Run the search; return how it ended and the numbers of the trials that were evaluated."""
    evaluated: list[int] = []

    def runner(work: Work, report: object) -> Finished:
        if work.trial.number == dies_at:
            raise Stopped
        evaluated.append(work.trial.number)
        return Finished(work=work, outcome=latency(ratio_of(work.trial.plan)))

    ending = run(
        agent,
        InlineExecutor(runner),
        MemoryLedger(book),
        Budget(trials=40),
        agent_name="toy",
        latency=LatencyBook(COSTS, (bound(),), BASELINE) if prune else None,
    )
    return ending, evaluated


def pruned_in(book: Book) -> list[str]:
    return [payload["trial_id"] for kind, payload in book.events if kind == PRUNED]


def test_hopeless_trials_are_recorded_told_and_not_evaluated() -> None:
    book, agent = Book(), Reciting(drawn(60))
    ending, evaluated = search(book, agent)
    assert ending == "budget"
    trials = list(book.trials.values())
    assert len(trials) == len(agent.told) == 40
    pruned = [t for t in trials if isinstance(t.outcome, Infeasible)]
    assert pruned
    assert [t.id for t in pruned] == pruned_in(book)
    assert len(evaluated) == 40 - len(pruned)
    assert all(t.state is TrialState.INFEASIBLE for t in pruned)
    assert all(ratio_of(t.plan) > BOUND for t in pruned)
    assert min(t.number for t in pruned) >= 15


def test_without_the_book_everything_is_evaluated() -> None:
    book = Book()
    _, evaluated = search(book, Reciting(drawn(60)), prune=False)
    assert len(evaluated) == 40
    assert not pruned_in(book)


def test_a_search_that_died_decides_alike_when_it_goes_on() -> None:
    whole, broken = Book(), Book()
    search(whole, Reciting(drawn(60)))
    measured = [t.number for t in whole.trials.values() if isinstance(t.outcome, Measured)]
    with pytest.raises(Stopped):
        search(broken, Reciting(drawn(60)), dies_at=measured[-3])
    search(broken, Reciting(drawn(60)))
    assert [t.outcome for t in broken.trials.values()] == [t.outcome for t in whole.trials.values()]


def test_what_other_jobs_measured_prunes_from_the_first_trial_on() -> None:
    book = Book()
    ledger = MemoryLedger(book)
    for who, plans in ((BASELINE_AGENT, [Plan()]), (MEMORY_AGENT, drawn(30, seed=1))):
        orders = [Evaluate(plan=plan) for plan in plans]
        for trial in ledger.propose(orders, agent=who, snapshot=None):
            work = Work(trial=trial, attempt=ledger.start(trial))
            ledger.record(Finished(work=work, outcome=latency(ratio_of(trial.plan))))
    agent = Reciting([plan_of(63, 62), plan_of(18, 18)])
    _, evaluated = search(book, agent)
    first, second = list(book.trials.values())[-2:]
    assert isinstance(first.outcome, Infeasible)
    assert first.outcome.foretold
    # To an agent it is neither measured nor among the least accurate plans.
    assert not Told((), first).impossible
    assert evaluated == [second.number]
