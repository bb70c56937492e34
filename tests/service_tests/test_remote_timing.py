"""Results wait for boards: with a real executor, real orders and a real store."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compression.artifact import Digest
from compression.checkpoint_files import with_card, zip_bytes
from search.device import LOCAL_DEVICES
from search.measurement import Failed, Infeasible, Measured, Outcome
from search.trial import Attempt
from service.db import timing_orders
from service.db.device_tables import TimingOrderRow
from service.db.session import Database
from service.db.timing_orders import LEASE_S, StoredOrder
from service.db.timing_queue import SqlTimingQueue
from tests.service_tests.boards import DEVICE, add_agent, job_with_trials, spec, times_npz
from tests.service_tests.stored import Clock
from tests.workers_tests.small_card import CARD, FILES
from tests.workers_tests.works import measured, work_of
from workers.executor import Executor, Finished, InlineExecutor, Lost, Progress, Report, Work
from workers.remote_timing import ROLE, TIMING_STEP, BoardWait, RemoteTimingExecutor
from workers.store import FolderStore

BOARDS = (*LOCAL_DEVICES, spec())
GARAGE = "board/garage"


@dataclasses.dataclass
class Bench:
    """A job with one trial, its executor, and a board that the test plays."""

    database: Database
    store: FolderStore
    clock: Clock
    job: str
    work: Work
    dense: bool = False
    outcome: Outcome | None = None
    runs: int = 0
    artifacts: Mapping[str, Digest] = dataclasses.field(default_factory=dict)

    def executor(self, devices: Any = BOARDS) -> Executor:
        queue = SqlTimingQueue(self.database, self.job, self.clock)
        boards = BoardWait(queue, self.store, devices)
        return RemoteTimingExecutor(InlineExecutor(self.run), boards)

    def run(self, work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        self.runs += 1
        candidate = "dense" if self.dense else "candidate"
        parts = {"onnxruntime.candidate": candidate, "onnxruntime.baseline": "dense", "probe": "p"}
        document = {
            "parts": {name: self.store.put(text.encode()) for name, text in parts.items()},
            "compare": "values",
            "seed": 3,
            "width": 0.05,
            "max_seconds": 2.0,
            "metrics": {DEVICE: ["load_ms"]},
        }
        manifest = self.store.put(json.dumps(document).encode())
        artifacts = {ROLE: manifest, "recovered": Digest("9" * 64), **self.artifacts}
        outcome = self.outcome or measured(0.9)
        return Finished(work=work, outcome=outcome, artifacts=artifacts, seconds={TIMING_STEP: 1.0})

    def lease(self, agent: str = "a", device: str = DEVICE) -> StoredOrder:
        found = add_agent(self.database, agent, self.clock, device=device)
        with self.database.write() as session:
            order = timing_orders.lease(session, found, self.clock())
        assert order is not None
        return order

    def answer(self, order: StoredOrder, failure: str | None = None, scale: float = 0.5) -> None:
        rng = np.random.default_rng(0)
        baseline = 1.0 + 0.01 * rng.random((8, 20))
        archive = times_npz(scale * baseline, baseline)
        self.clock.advance(4.0)
        reading = {"metric": "load_ms", "value": 3.0, "low": 2.0, "high": 4.0, "n": 3}
        reading |= {"device": order.order.device, "statistic": "p50"}
        with self.database.write() as session:
            timing_orders.finish(
                session,
                order.id,
                order.agent,
                order.attempt,
                times=None if failure else self.store.put(archive),
                readings=[] if failure else [reading],
                failure=failure,
                now=self.clock(),
            )


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    clock = Clock()
    job, (trial_id,) = job_with_trials(database, clock)
    work = work_of(0)
    trial = dataclasses.replace(work.trial, id=trial_id)
    attempt = Attempt(id="att", trial_id=trial_id, epoch=1)
    return Bench(
        database, FolderStore(tmp_path / "blobs"), clock, job, Work(trial=trial, attempt=attempt)
    )


def answers(reports: Any) -> list[Finished | Lost]:
    return [report for report in reports if not isinstance(report, Progress)]


def answered(executor: Executor) -> Finished:
    reports: list[Report] = list(executor.wait(5.0))
    (report,) = answers(reports)
    assert isinstance(report, Finished)
    return report


def test_a_result_waits_for_its_board_and_gets_its_readings(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(bench.work)
    assert answers(executor.wait(0.0)) == []
    order = bench.lease()
    assert order.order.metrics == ("load_ms",)
    assert (order.order.seed, order.order.width, order.order.max_seconds) == (3, 0.05, 2.0)
    assert answers(executor.wait(0.05)) == []
    bench.answer(order)
    finished = answered(executor)
    assert isinstance(finished.outcome, Measured)
    found = finished.outcome.measurement
    assert found.get("top1") is not None
    latency = found.get("latency_ms", DEVICE, "p50")
    assert latency is not None
    assert latency.ratio is not None
    assert latency.value == pytest.approx(0.5025, abs=0.003)
    assert latency.ratio.value == pytest.approx(0.5, abs=1e-6)
    assert latency.n == 160
    load = found.get("load_ms", DEVICE, "p50")
    assert load is not None
    assert load.value == 3.0
    # The manifest was for the boards; the step counts what the board took by the server's clock.
    assert set(finished.artifacts) == {"recovered"}
    assert finished.seconds[TIMING_STEP] == 5.0
    assert list(executor.wait(0.0)) == []


def test_the_dense_models_ratio_is_one(bench: Bench) -> None:
    bench.dense = True
    executor = bench.executor()
    executor.submit(bench.work)
    executor.wait(0.0)
    bench.answer(bench.lease(), scale=1.0)
    finished = answered(executor)
    assert isinstance(finished.outcome, Measured)
    latency = finished.outcome.measurement.get("latency_ms", DEVICE, "p50")
    assert latency is not None
    assert latency.ratio is not None
    assert (latency.ratio.low, latency.ratio.value, latency.ratio.high) == (1.0, 1.0, 1.0)


def test_every_board_must_answer(bench: Bench) -> None:
    executor = bench.executor((*BOARDS, spec(GARAGE)))
    executor.submit(bench.work)
    executor.wait(0.0)
    bench.answer(bench.lease())
    assert answers(executor.wait(0.05)) == []
    bench.answer(bench.lease("g", GARAGE))
    finished = answered(executor)
    assert isinstance(finished.outcome, Measured)
    readings = finished.outcome.measurement.readings
    assert {r.device for r in readings} == {None, DEVICE, GARAGE}
    keys = [(r.metric, r.device, r.statistic) for r in readings]
    assert len(set(keys)) == len(keys)


def test_a_board_that_fails_makes_the_attempt_a_retryable_failure(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(bench.work)
    executor.wait(0.0)
    bench.answer(bench.lease(), "outputs differ by 2.0e-01")
    finished = answered(executor)
    assert finished.outcome == Failed(f"{DEVICE}: outputs differ by 2.0e-01", retryable=True)
    # Another attempt orders it anew.
    executor.submit(bench.work)
    executor.wait(0.0)
    bench.answer(bench.lease())
    assert isinstance(answered(executor).outcome, Measured)


def test_what_was_not_measured_is_ordered_of_nobody(bench: Bench) -> None:
    bench.outcome = Infeasible("no")
    executor = bench.executor()
    executor.submit(bench.work)
    assert answered(executor).outcome == Infeasible("no")


def test_the_next_conductor_finds_the_answer_and_orders_only_what_is_missing(bench: Bench) -> None:
    devices = (*BOARDS, spec(GARAGE))
    first = bench.executor(devices)
    first.submit(bench.work)
    first.wait(0.0)
    bench.answer(bench.lease())
    first.close()
    # The conductor died; its attempt runs again under the next one.
    second = bench.executor(devices)
    second.submit(bench.work)
    second.wait(0.0)
    agent = add_agent(bench.database, "a", bench.clock)
    with bench.database.write() as session:
        assert timing_orders.lease(session, agent, bench.clock()) is None
    bench.answer(bench.lease("g", GARAGE))
    finished = answered(second)
    assert isinstance(finished.outcome, Measured)
    assert bench.runs == 2
    with bench.database.read() as session:
        assert session.query(TimingOrderRow).count() == 2


def test_a_lost_board_is_replaced_by_another_of_its_pool(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(bench.work)
    executor.wait(0.0)
    lost = bench.lease("a")
    bench.clock.advance(LEASE_S)
    taken = bench.lease("b")
    assert taken.id == lost.id
    bench.answer(taken)
    assert isinstance(answered(executor).outcome, Measured)


def test_the_report_has_it_whoever_ends_the_attempt_and_has_it_once(bench: Bench) -> None:
    checkpoint = bench.store.put(zip_bytes(with_card(FILES, CARD)))
    bench.artifacts = {"checkpoint": checkpoint}
    devices = (*BOARDS, spec(GARAGE))
    found = []
    for boards in ([("g", GARAGE)], [("a", DEVICE)], []):
        executor = bench.executor(devices)
        executor.submit(bench.work)
        found += answers(executor.wait(0.0))
        for board in boards:
            bench.answer(bench.lease(*board))
        # The first conductor dies before all boards have answered, the second one before it has
        # written anything down.
        found += answers(executor.wait(0.3))
        executor.close()
    second, third = found
    assert isinstance(second, Finished)
    assert isinstance(third, Finished)
    assert isinstance(second.outcome, Measured)
    assert second.artifacts == third.artifacts
    assert second.outcome == third.outcome
    assert second.artifacts["checkpoint"] != checkpoint
    report = json.loads(bench.store.get(second.artifacts["report"]))
    # In the order of the job's devices, not in that of the answers.
    assert [row["device"] for row in report["boards"]] == [DEVICE, GARAGE]
    for row in report["boards"]:
        latency = second.outcome.measurement.get("latency_ms", row["device"], "p50")
        assert latency is not None
        assert row["metrics"][0]["result"]["value"] == latency.value


def test_a_checkpoint_that_is_gone_makes_the_attempt_a_retryable_failure(bench: Bench) -> None:
    bench.artifacts = {"checkpoint": Digest("8" * 64)}
    executor = bench.executor()
    executor.submit(bench.work)
    executor.wait(0.0)
    bench.answer(bench.lease())
    outcome = answered(executor).outcome
    assert isinstance(outcome, Failed)
    assert outcome.retryable
    assert "8888" in outcome.error
