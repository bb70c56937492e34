"""Jobs that know what earlier jobs evaluated: what they pay for, and what a crash changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from search.objective import Constraint
from search.trial import MEMORY_AGENT, Fidelity, Trial
from tests.memory_ledger import Book
from tests.memory_of_evaluations import MemoryOfEvaluations
from tests.synthetic import DEVICE, latency_at_most, macs_at_most
from tests.workers_tests.test_phases import PowerCut, job_run, spec, told
from workers.job import JobSpec
from workers.memory import JobMemory
from workers.phases import RESELECTED, JobRun, run_job

QUICK = {"candidates": 32, "fit_iterations": 4}
"""Options of `cbo` that make it think for a shorter time."""


def with_memory(run: JobRun, shared: MemoryOfEvaluations) -> JobRun:
    """Return the run with what other jobs left in `shared`."""
    memory = JobMemory(
        memory=shared,
        spec=run.spec,
        store=run.store,
        devices={DEVICE: "this node"},
        model_id="mdl_1",
        dataset_id="dst_1",
    )
    return dataclasses.replace(run, memory=memory)


def executed(book: Book) -> list[Trial]:
    """Return the trials that an executor was given: all but those that were known."""
    return [t for t in book.trials.values() if book.attempts[t.id] and t.id not in book.remembered]


def test_a_job_again_pays_for_nothing_but_confirmations_and_new_plans(tmp_path: Path) -> None:
    shared = MemoryOfEvaluations()
    job = spec(macs_at_most(0.6), latency_at_most(0.7))
    first, again = Book(), Book()
    run_job(with_memory(job_run(job, first, tmp_path), shared))
    assert len(executed(first)) == len(first.trials)
    end = run_job(with_memory(job_run(job, again, tmp_path), shared))

    warm = [t for t in again.trials.values() if t.agent == MEMORY_AGENT]
    searched = {t.plan.digest: t.outcome for t in first.trials.values() if t.agent == "random"}
    assert {t.plan.digest: t.outcome for t in warm} == searched
    assert [payload for kind, payload in again.events if kind == "job.warm_start"] == [
        {"trials": 12}
    ]
    own = [t for t in again.trials.values() if t.agent == "random"]
    assert len(own) == 12
    assert not {t.plan.digest for t in own} & set(searched)
    # The dense model and finalists that were recovered before are known, too.
    paid = executed(again)
    known = {(t.plan.digest, t.fidelity) for t in first.trials.values()}
    assert all(
        t.fidelity is Fidelity.CONFIRMED or (t.plan.digest, t.fidelity) not in known for t in paid
    )
    assert end.outcome == "front_found"
    assert not any(t.agent == MEMORY_AGENT for t in paid)


@pytest.mark.slow
def test_a_warm_job_cut_at_any_point_gives_the_same_trials(tmp_path: Path) -> None:
    known = MemoryOfEvaluations()
    job = spec(macs_at_most(0.6), trials=6)
    run_job(with_memory(job_run(job, Book(), tmp_path), known))
    warm = dataclasses.replace(spec(macs_at_most(0.6), trials=5, agent="cbo"), agent_options=QUICK)

    def started_from(known: MemoryOfEvaluations) -> MemoryOfEvaluations:
        shared = MemoryOfEvaluations()
        shared.entries = dict(known.entries)
        return shared

    undisturbed = Book()
    run_job(with_memory(job_run(warm, undisturbed, tmp_path), started_from(known)))
    assert sum(t.agent == MEMORY_AGENT for t in undisturbed.trials.values()) == 6
    for cut_after in range(len(executed(undisturbed))):
        book, shared = Book(), started_from(known)
        with pytest.raises(PowerCut):
            run_job(with_memory(job_run(warm, book, tmp_path, cut_after), shared))
        # Meanwhile another job left more.
        later = spec(macs_at_most(0.6), trials=9, agent="tpe")
        run_job(with_memory(job_run(later, Book(), tmp_path), shared))
        run_job(with_memory(job_run(warm, book, tmp_path), shared))
        assert told(book) == told(undisturbed), cut_after


def test_plans_outside_the_space_and_jobs_without_memory_start_cold(tmp_path: Path) -> None:
    shared = MemoryOfEvaluations()
    wide = spec(macs_at_most(0.6))
    run_job(with_memory(job_run(wide, Book(), tmp_path), shared))
    narrow = dataclasses.replace(
        wide, methods=dataclasses.replace(wide.methods, allow=("quantize",), channel_multiple=64)
    )
    book = Book()
    run_job(with_memory(job_run(narrow, book, tmp_path), shared))
    plans = [t.plan for t in book.trials.values() if t.agent == MEMORY_AGENT]
    assert all(not plan.prune_channels() for plan in plans)
    cold = Book()
    run_job(job_run(wide, cold, tmp_path))
    assert not any(t.agent == MEMORY_AGENT for t in cold.trials.values())
    assert len(executed(cold)) == len(cold.trials)


def sparing(*bounds: Constraint, trials: int = 12) -> JobSpec:
    """Return a job that searches only where that promises something."""
    job = spec(*bounds, trials=trials, agent="cbo")
    return dataclasses.replace(job, budget=dataclasses.replace(job.budget, only_if_promising=True))


def reselections(book: Book) -> list[Mapping[str, Any]]:
    return [payload for kind, payload in book.events if kind == RESELECTED]


def test_new_bounds_that_remembered_trials_answer_need_no_search(tmp_path: Path) -> None:
    shared = MemoryOfEvaluations()
    run_job(
        with_memory(
            job_run(spec(macs_at_most(0.9), trials=40, agent="cbo"), Book(), tmp_path), shared
        )
    )
    book = Book()
    end = run_job(with_memory(job_run(sparing(macs_at_most(0.95)), book, tmp_path), shared))
    [said] = reselections(book)
    assert said["search"] is False
    assert said["known"] > 0
    assert said["chance_of_better"] < 0.5
    assert end.outcome == "front_found"
    assert not [t for t in book.trials.values() if t.agent == "cbo"]
    # A conductor that comes back decides the same.
    before = told(book)
    run_job(with_memory(job_run(sparing(macs_at_most(0.95)), book, tmp_path), shared))
    assert told(book) == before


def test_bounds_that_no_remembered_trial_keeps_are_searched(tmp_path: Path) -> None:
    shared = MemoryOfEvaluations()
    run_job(
        with_memory(
            job_run(spec(macs_at_most(0.9), trials=6, agent="uniform"), Book(), tmp_path), shared
        )
    )
    book = Book()
    run_job(with_memory(job_run(sparing(macs_at_most(0.2), trials=5), book, tmp_path), shared))
    assert [payload["search"] for payload in reselections(book)] == [True]
    assert len([t for t in book.trials.values() if t.agent == "cbo"]) == 5
