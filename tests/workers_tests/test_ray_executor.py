"""The executor on a real, local Ray, with processes that are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.measurement import Failed
from tests.contracts.executor import ExecutorContract, answers_of, collect, waiting_pid
from tests.workers_tests.scripted import BROKEN_FACTORY, FACTORY
from tests.workers_tests.works import JOB, measured, work_of
from workers.executor import Finished, Lost, Progress
from workers.ray_cluster import RayCluster
from workers.ray_executor import RayExecutor

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One Ray for all tests; executors attach to it, so that closing them leaves it running."""
    cluster = RayCluster(2)
    cluster.ensure()
    yield cluster
    cluster.stop()


class Attached(RayExecutor):
    """An executor that leaves the shared Ray running when it closes."""

    def __init__(self, cluster: RayCluster, folder: Path, factory: str = FACTORY) -> None:
        super().__init__(JOB, "file:///none", 2, quiet_folder=folder, factory=factory)
        self.cluster = cluster

    def close(self) -> None:
        self.release()


class TestRayExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self, cluster: RayCluster, folder: Path) -> Iterator[RayExecutor]:
        executor = Attached(cluster, folder)
        yield executor
        executor.close()

    def test_two_attempts_run_at_once_on_one_thread_each(
        self, executor: RayExecutor, folder: Path
    ) -> None:
        first, second = work_of(1), work_of(3)
        executor.submit(first)
        executor.submit(second)
        pids = [waiting_pid(folder, work) for work in (first, second)]
        assert len({*pids, os.getpid()}) == 3
        for work in (first, second):
            (folder / f"{work.attempt.id}.go").touch()
        answers = answers_of(collect(executor, 2))
        assert {answer.work.trial.id for answer in answers} == {"trl_1", "trl_3"}
        for answer in answers:
            assert isinstance(answer, Finished)
            assert answer.seconds["threads"] == 1

    def test_more_attempts_than_slots_are_refused(
        self, executor: RayExecutor, folder: Path
    ) -> None:
        executor.submit(work_of(1))
        executor.submit(work_of(3))
        with pytest.raises(ValueError, match="2 attempts are running; 2 is the limit"):
            executor.submit(work_of(2))

    def test_progress_arrives_while_an_attempt_runs(
        self, executor: RayExecutor, folder: Path
    ) -> None:
        work = work_of(1)
        executor.submit(work)
        waiting_pid(folder, work)
        deadline = time.monotonic() + 20
        reports = list(executor.wait(1.0))
        while len(reports) < 3 and time.monotonic() < deadline:
            reports += executor.wait(1.0)
        assert [type(report) for report in reports] == [Progress] * 3
        (folder / f"{work.attempt.id}.go").touch()
        assert [type(report) for report in collect(executor, 1)] == [Finished]

    def test_an_actor_stays_warm(self, executor: RayExecutor) -> None:
        pids = set()
        for number in (2, 4):
            executor.submit(work_of(number))
            reports = collect(executor, 1)
            pids |= {report.data["pid"] for report in reports if isinstance(report, Progress)}
        assert len(pids) == 1

    def test_kill_9_of_an_actor_loses_its_attempt_only(
        self, executor: RayExecutor, folder: Path
    ) -> None:
        doomed, other = work_of(1), work_of(3)
        executor.submit(doomed)
        executor.submit(other)
        pid = waiting_pid(folder, doomed)
        waiting_pid(folder, other)
        os.kill(pid, signal.SIGKILL)
        (lost,) = answers_of(collect(executor, 1))
        assert isinstance(lost, Lost)
        assert lost.work == doomed
        again = work_of(1, epoch=2)
        executor.submit(again)
        assert waiting_pid(folder, again) != pid
        for work in (other, again):
            (folder / f"{work.attempt.id}.go").touch()
        answers = answers_of(collect(executor, 2))
        assert {answer.work.attempt.id for answer in answers} == {"att_3_1", "att_1_2"}
        assert all(isinstance(answer, Finished) for answer in answers)

    def test_kill_9_of_an_idle_actor_costs_no_attempt(self, executor: RayExecutor) -> None:
        executor.submit(work_of(2))
        reports = collect(executor, 1)
        (pid,) = {report.data["pid"] for report in reports if isinstance(report, Progress)}
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        executor.submit(work_of(4))
        (answer,) = answers_of(collect(executor, 1))
        assert isinstance(answer, Finished)
        assert answer.outcome == measured(0.004)

    def test_a_model_that_cannot_be_loaded_fails_its_trial(
        self, cluster: RayCluster, folder: Path
    ) -> None:
        executor = Attached(cluster, folder, BROKEN_FACTORY)
        executor.submit(work_of(2))
        (answer,) = answers_of(collect(executor, 1))
        executor.close()
        assert isinstance(answer, Finished)
        assert answer.outcome == Failed("ModelRefused: job_test: no such architecture")


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_kill_9_of_ray_itself_loses_what_ran_and_goes_on(
    name: str, cluster: RayCluster, tmp_path: Path
) -> None:
    executor = Attached(cluster, tmp_path)
    works = [work_of(1), work_of(3)]
    for work in works:
        executor.submit(work)
    for work in works:
        waiting_pid(tmp_path, work)
    process, on_sigterm = cluster.processes()[name], signal.getsignal(signal.SIGTERM)
    process.kill()
    answers = answers_of(collect(executor, 2))
    assert {answer.work.trial.id for answer in answers} == {"trl_1", "trl_3"}
    assert all(isinstance(answer, Lost) for answer in answers)
    executor.submit(work_of(2))
    (answer,) = answers_of(collect(executor, 1))
    executor.close()
    assert isinstance(answer, Finished)
    assert answer.outcome == measured(0.002)
    assert cluster.processes()[name].pid != process.pid
    # Ray takes this signal for itself when it starts.
    assert signal.getsignal(signal.SIGTERM) is on_sigterm
