"""A whole job over the ports, on a made-up network: what ends how, and what a crash changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compression.artifact import Digest
from compression.plan import Plan
from compression.site import MODEL_SITE, Site
from compression.surveyed import Survey
from search import catalogue
from search.agent import Request
from search.measurement import Failed, Measured, Measurement
from search.objective import Constraint
from search.trial import BASELINE_AGENT, FINALIST_AGENT, Fidelity, Trial, TrialState
from tests.memory_ledger import Book, MemoryLedger
from tests.synthetic import Net, latency_at_most, macs_at_most, top1_at_least
from tests.workers_tests.works import JOB
from workers.executor import Finished, InlineExecutor, Work
from workers.job import JobSpec, Recovery
from workers.ledger import Ledger
from workers.memory import JobMemory
from workers.phases import BaselineFailed, JobRun, run_job
from workers.race import Entries
from workers.store import FolderStore

NET = Net(d=4)
REGAINED = 0.05


class PowerCut(BaseException):
    """The process ends here."""


def spec(*constraints: Constraint, trials: int = 12, agent: str = "random") -> JobSpec:
    return dataclasses.replace(
        JOB,
        constraints=constraints,
        budget=dataclasses.replace(JOB.budget, trials=trials),
        recovery=Recovery(finalists=2),
        agent=agent,
        seed=5,
    )


def survey() -> Survey:
    sites = tuple(
        Site(name=name, kind="channels", channels=channels, macs=1, params=1)
        for name, channels in NET.costs.site_channels.items()
    )
    model = Site(name=MODEL_SITE, kind="model", channels=0, macs=1, params=1)
    return Survey(sites=(*sites, model), costs=NET.costs, summary={})


def runner(
    store: FolderStore, cut_after: int | None = None
) -> Callable[[Work, Callable[[Mapping[str, Any]], None]], Finished]:
    """Measure by formula; recovery regains a fixed share; optionally cut the power mid-way."""
    done = 0

    def run(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        nonlocal done
        if done == cut_after:
            raise PowerCut
        done += 1
        measurement = NET.measurement(work.trial.plan)
        artifacts = {}
        if work.trial.fidelity is not Fidelity.PROXY and work.trial.plan.decisions:
            readings = [
                dataclasses.replace(r, value=r.value + REGAINED, high=r.high + REGAINED)
                if r.metric == "top1"
                else r
                for r in measurement.readings
            ]
            measurement = dataclasses.replace(measurement, readings=tuple(readings))
        if work.trial.fidelity is Fidelity.FULL:
            plan = store.put(json.dumps({"plan": work.trial.plan.to_json()}).encode())
            artifacts["recovered"] = store.put(json.dumps({"parts": {"plan": plan}}).encode())
        return Finished(work=work, outcome=Measured(measurement), artifacts=artifacts)

    return run


def job_run(job: JobSpec, book: Book, folder: Path, cut_after: int | None = None) -> JobRun:
    store = FolderStore(folder)
    return JobRun(
        spec=job,
        survey=survey(),
        executor=InlineExecutor(runner(store, cut_after)),
        ledger=MemoryLedger(book),
        store=store,
    )


def told(book: Book) -> list[tuple[Any, ...]]:
    return [(t.number, t.plan.digest, t.fidelity, t.state, t.outcome) for t in book.trials.values()]


def test_a_feasible_job_ends_with_a_confirmed_front(tmp_path: Path) -> None:
    book = Book()
    end = run_job(job_run(spec(macs_at_most(0.6), latency_at_most(0.7)), book, tmp_path))
    assert end.outcome == "front_found"
    assert end.front
    assert all(t.fidelity is Fidelity.CONFIRMED for t in end.front)
    assert end.hypervolume > 0
    assert end.baseline is not None
    searched = [t for t in book.trials.values() if t.agent == "random"]
    assert len(searched) == 12
    baselines = [t for t in book.trials.values() if t.agent == BASELINE_AGENT]
    assert [t.fidelity for t in baselines] == [
        Fidelity.PROXY,
        Fidelity.FULL,
        Fidelity.CONFIRMED,
    ]
    full = [t for t in book.trials.values() if t.agent == FINALIST_AGENT]
    assert {t.plan for t in full} <= {t.plan for t in searched}


def test_finalists_start_from_the_base_that_the_search_scored_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Digest("ab" * 32)

    class OnBase:
        """Random search on a base that somebody prepared."""

        def __init__(self, *arguments: Any) -> None:
            self._agent = create(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._agent, name)

        def ask(self, n: int) -> list[Request]:
            return [dataclasses.replace(r, base=base) for r in self._agent.ask(n)]

    create = catalogue.create
    monkeypatch.setattr(catalogue, "create", OnBase)
    book = Book()
    end = run_job(job_run(spec(macs_at_most(0.6)), book, tmp_path))
    assert end.outcome == "front_found"
    full = [t for t in book.trials.values() if t.fidelity is Fidelity.FULL]
    recovered = [t for t in full if t.agent == FINALIST_AGENT]
    assert recovered
    assert {t.base for t in recovered} == {base}
    confirmed = [t for t in book.trials.values() if t.fidelity is Fidelity.CONFIRMED]
    artifacts = {t.artifacts["recovered"] for t in recovered}
    assert {t.base for t in confirmed if t.agent == FINALIST_AGENT} <= artifacts


def test_an_accuracy_floor_decides_after_recovery_only(tmp_path: Path) -> None:
    # Below the floor as proxies, above it once recovery gave back what it gives.
    floor = top1_at_least(-REGAINED / 2)
    end = run_job(job_run(spec(macs_at_most(0.6), floor, trials=40), Book(), tmp_path))
    assert end.outcome == "front_found"
    for trial in end.front:
        assert isinstance(trial.outcome, Measured)
        assert end.baseline is not None
        assert floor.violation(trial.outcome.measurement, end.baseline) <= 0


def test_an_infeasible_job_names_the_nearest_and_the_price(tmp_path: Path) -> None:
    unreachable = latency_at_most(0.01)
    book = Book()
    end = run_job(job_run(spec(macs_at_most(0.6), unreachable), book, tmp_path))
    assert end.outcome == "infeasible"
    assert end.front == ()
    assert end.nearest
    assert [row["constraint"] for row in end.binding] == [unreachable.key]
    assert end.binding[0]["relative_price"] > 0
    assert end.binding[0]["reachable"] > end.binding[0]["limit"]
    # Two rounds of finalists were given their chance.
    assert sum(t.fidelity is Fidelity.FULL for t in book.trials.values()) == 1 + 2 * 2


def test_held_out_accuracy_picks_nobody_else(tmp_path: Path) -> None:
    # Above the floor on search-validation, below it on the held-out split.
    book = Book()
    run = job_run(spec(macs_at_most(0.6), top1_at_least(-0.3), trials=40), book, tmp_path)
    inner = runner(FolderStore(tmp_path))

    def disappointing(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        finished = inner(work, report)
        if work.trial.fidelity is not Fidelity.CONFIRMED or work.trial.base is None:
            return finished
        assert isinstance(finished.outcome, Measured)
        readings = tuple(
            dataclasses.replace(r, value=0.1, low=0.1, high=0.1) if r.metric == "top1" else r
            for r in finished.outcome.measurement.readings
        )
        return dataclasses.replace(finished, outcome=Measured(Measurement(readings)))

    end = run_job(dataclasses.replace(run, executor=InlineExecutor(disappointing)))
    assert end.outcome == "infeasible"
    assert [row["constraint"] for row in end.binding] == ["top1"]
    full = [t for t in book.trials.values() if t.fidelity is Fidelity.FULL]
    assert len(full) == 1 + 2


def test_a_cancelled_job_stops_and_says_so(tmp_path: Path) -> None:
    book = Book()
    book.wish = "cancel"
    end = run_job(job_run(spec(), book, tmp_path))
    assert end.outcome == "cancelled"
    assert not any(t.state is TrialState.MEASURED for t in book.trials.values())


def test_a_broken_baseline_fails_the_job(tmp_path: Path) -> None:
    run = job_run(spec(), Book(), tmp_path)
    executor = InlineExecutor(
        lambda work, _: Finished(work=work, outcome=Failed("the weights do not fit"))
    )
    with pytest.raises(BaselineFailed, match="the weights do not fit"):
        run_job(dataclasses.replace(run, executor=executor))


@pytest.mark.parametrize(
    ("agent", "cut_after"), [*(("random", n) for n in range(17)), ("cbo", 9), ("tpe", 9)]
)
def test_a_cut_at_any_point_changes_nothing(tmp_path: Path, agent: str, cut_after: int) -> None:
    job = spec(macs_at_most(0.6), latency_at_most(0.7), agent=agent)
    undisturbed = Book()
    expected = run_job(job_run(job, undisturbed, tmp_path))

    book = Book()
    with pytest.raises(PowerCut):
        run_job(job_run(job, book, tmp_path, cut_after))
    end = run_job(job_run(job, book, tmp_path))

    assert told(book) == told(undisturbed)
    assert [t.plan for t in end.front] == [t.plan for t in expected.front]


def test_finished_trials_run_once(tmp_path: Path) -> None:
    job = spec(macs_at_most(0.6))
    book = Book()
    run_job(job_run(job, book, tmp_path))
    attempts = {key: len(value) for key, value in book.attempts.items()}
    run_job(job_run(job, book, tmp_path))
    assert {key: len(value) for key, value in book.attempts.items()} == attempts
    assert all(count == 1 for count in attempts.values())


class MadeUpRace:
    """Gives up the trials that a verdict names; the others run to their end."""

    def __init__(self, run: JobRun, outruns: Callable[[list[Trial]], list[Trial]]) -> None:
        self.run_of = run
        self.outruns = outruns
        self.rivals: list[Mapping[str, frozenset[str]]] = []

    def run(
        self,
        trials: Sequence[Trial],
        rivals: Mapping[str, frozenset[str]],
        ledger: Ledger,
        memory: JobMemory | None = None,
    ) -> list[Trial]:
        self.rivals.append(rivals)
        entries = Entries(trials, ledger, self.run_of.store, memory)
        out = {t.id for t in self.outruns(list(trials))}
        while (work := entries.start()) is not None:
            if work.trial.id in out:
                entries.give_up(work, "outrun")
            else:
                self.run_of.executor.submit(work)
                for report in self.run_of.executor.wait(1.0):
                    assert isinstance(report, Finished)
                    entries.finish(report)
        return entries.ended()


def test_who_is_outrun_is_neither_confirmed_nor_on_the_front(tmp_path: Path) -> None:
    job = spec(macs_at_most(0.6))
    job = dataclasses.replace(job, recovery=Recovery(finalists=3, race="asha"))
    book = Book()
    run = job_run(job, book, tmp_path)
    race = MadeUpRace(run, lambda trials: trials[1:])
    end = run_job(dataclasses.replace(run, race=race))
    assert end.outcome == "front_found"
    full = [t for t in book.trials.values() if t.fidelity is Fidelity.FULL][1:]
    assert [t.state for t in full] == [TrialState.MEASURED, *[TrialState.INFEASIBLE] * 2]
    (rivals,) = race.rivals
    # One objective and bounds that all hold: everyone may outrun everyone.
    assert rivals == {t.id: {other.id for other in full} - {t.id} for t in full}
    confirmed = [t for t in book.trials.values() if t.fidelity is Fidelity.CONFIRMED]
    assert [t.plan for t in confirmed[1:]] == [full[0].plan]
    # A second conductor walks the same way.
    before = told(book)
    again = dataclasses.replace(job_run(job, book, tmp_path), race=race)
    assert [t.plan for t in run_job(again).front] == [t.plan for t in end.front]
    assert told(book) == before


def test_few_finalists_do_not_race(tmp_path: Path) -> None:
    run = job_run(spec(macs_at_most(0.6)), Book(), tmp_path)
    race = MadeUpRace(run, lambda trials: trials)
    assert run_job(dataclasses.replace(run, race=race)).outcome == "front_found"
    assert race.rivals == []


def test_the_short_rung_chooses_among_the_best_proxies(tmp_path: Path) -> None:
    job = spec(macs_at_most(0.6))
    job = dataclasses.replace(job, recovery=Recovery(finalists=1, short_finalists=4))
    book = Book()
    run = job_run(job, book, tmp_path)
    inner = runner(FolderStore(tmp_path))
    order: list[Plan] = []

    def reversing(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        """The worse a proxy was, the better it is after some steps."""
        finished = inner(work, report)
        if work.trial.fidelity is not Fidelity.SHORT:
            return finished
        order.append(work.trial.plan)
        assert isinstance(finished.outcome, Measured)
        top1 = len(order) / 10
        readings = tuple(
            dataclasses.replace(r, value=top1, low=top1, high=top1) if r.metric == "top1" else r
            for r in finished.outcome.measurement.readings
        )
        return dataclasses.replace(finished, outcome=Measured(Measurement(readings)))

    end = run_job(dataclasses.replace(run, executor=InlineExecutor(reversing)))
    assert end.outcome == "front_found"
    assert len(order) == 4
    full = [t for t in book.trials.values() if t.fidelity is Fidelity.FULL]
    assert [t.plan for t in full[1:]] == [order[-1]]
    # Promotion is not searching: the budget knows nothing of it.
    assert run.ledger.spent().trials == job.budget.trials
    before = told(book)
    run_job(job_run(job, book, tmp_path))
    assert told(book) == before
    _, rungs = [e for e in book.events if e[0] == "job.rungs"][-1]
    assert rungs["metric"] == "top1"
    assert rungs["rank_correlation"]["proxy_short"] == {"rho": pytest.approx(-1.0), "n": 4}
    assert rungs["rank_correlation"]["proxy_full"] == {"rho": None, "n": 1}
