"""What every executor must hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from search.measurement import Failed
from tests.workers_tests.works import measured, work_of
from workers.executor import Executor, Finished, Lost, Progress, Report, Work

DEADLINE_S = 40.0


def collect(executor: Executor, answers: int) -> list[Report]:
    """Return what comes in until so many attempts are answered."""
    deadline = time.monotonic() + DEADLINE_S
    reports: list[Report] = []
    while sum(not isinstance(r, Progress) for r in reports) < answers:
        assert time.monotonic() < deadline, f"only {reports} came in"
        reports += executor.wait(1.0)
    return reports


def answers_of(reports: Sequence[Report]) -> list[Finished | Lost]:
    return [report for report in reports if not isinstance(report, Progress)]


class ExecutorContract:
    """Subclass it with a fixture `executor` that runs `scripted.runner` on `folder`."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    def test_an_attempt_is_answered_once(self, executor: Executor) -> None:
        work = work_of(2)
        executor.submit(work)
        (answer,) = answers_of(collect(executor, 1))
        assert isinstance(answer, Finished)
        assert answer.work == work
        assert answer.outcome == measured(0.002)
        assert answer.seconds["score"] == 0.5
        assert list(executor.wait(0.0)) == []

    def test_attempts_follow_each_other(self, executor: Executor) -> None:
        for number in (2, 4, 6):
            executor.submit(work_of(number))
            (answer,) = answers_of(collect(executor, 1))
            assert answer.work.trial.number == number

    def test_progress_arrives_in_order_and_before_the_answer(self, executor: Executor) -> None:
        work = work_of(2)
        executor.submit(work)
        reports = collect(executor, 1)
        progress = [report for report in reports if isinstance(report, Progress)]
        assert [report.data["done"] for report in progress] == [0, 1, 2]
        assert all(report.work == work for report in progress)
        assert isinstance(reports[-1], Finished)

    def test_a_foreign_error_is_a_retryable_failure(self, executor: Executor) -> None:
        executor.submit(work_of(100))
        (answer,) = answers_of(collect(executor, 1))
        assert isinstance(answer, Finished)
        assert isinstance(answer.outcome, Failed)
        assert answer.outcome.retryable
        assert "RuntimeError: the disk is full" in answer.outcome.error

    def test_an_error_of_the_job_is_final(self, executor: Executor) -> None:
        executor.submit(work_of(200))
        (answer,) = answers_of(collect(executor, 1))
        assert isinstance(answer, Finished)
        assert answer.outcome == Failed("ModelRefused: job_test: weights do not fit")

    def test_it_goes_on_after_a_failure(self, executor: Executor) -> None:
        for number in (100, 2):
            executor.submit(work_of(number))
            (answer,) = answers_of(collect(executor, 1))
        assert isinstance(answer, Finished)
        assert answer.outcome == measured(0.002)

    def test_waiting_for_nothing_returns(self, executor: Executor) -> None:
        started = time.monotonic()
        assert list(executor.wait(0.1)) == []
        assert time.monotonic() - started < 5.0

    def test_closing_abandons_and_may_be_repeated(self, executor: Executor, folder: Path) -> None:
        executor.submit(work_of(2))
        executor.close()
        executor.close()
        assert list(executor.wait(0.0)) == []


def waiting_pid(folder: Path, work: Work) -> int:
    """Return the process that runs a waiting attempt, once it does."""
    path = folder / f"{work.attempt.id}.pid"
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{work.attempt.id} never started"
        time.sleep(0.01)
    return int(path.read_text())
