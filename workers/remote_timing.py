"""Times of boards: the port of what is ordered of them, and who waits for it.

A worker that evaluates a trial hands its deployed file over (`workers.handover`). Whoever drives
the worker orders the file's times of every board that the job names, keeps the result back until
all have answered, and adds what they measured to it. What is ordered is named by what it is, so
whoever drives the job next finds what was answered and orders only what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from compression.artifact import Digest
from compression.errors import CompressionError
from search.device import DeviceSpec
from search.measurement import Failed, Measured, Measurement
from workers.board_readings import board_readings
from workers.board_report import BoardTimes, with_boards
from workers.errors import WorkerError
from workers.executor import Executor, Finished, Progress, Report, Work
from workers.store import ArtifactStore

Compare = Literal["values", "decisions"]
"""How a board's outputs are held against ours: all of them, or the classes they decide for."""

ROLE = "boards"
"""Role of the manifest that a worker hands over; it does not outlive its way to the ledger."""

POLL_S = 0.2
"""How often it is looked whether boards have answered."""

TIMING_STEP = "time"
"""The step whose seconds are spent on a device."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimingOrder:
    """A file to be timed beside the dense one on any board of a pool.

    Attributes:
        trial_id: Whose file.
        device: Name of the pool, `board/...`.
        candidate: The file as the pool's runtime loads it.
        baseline: The dense one, likewise; equal to `candidate` for the dense model's own trial.
        probe: Archive of `inputs` and the `expected` outputs of the candidate.
        compare: How the outputs are held against the expected ones.
        seed: Of inputs and of the order of calls.
        width: Relative width of the ratio's interval that is wanted.
        max_seconds: Longest timing.
        metrics: Timed metrics that the job wants of this board beside latency and throughput.
    """

    trial_id: str
    device: str
    candidate: Digest
    baseline: Digest
    probe: Digest
    compare: Compare
    seed: int
    width: float
    max_seconds: float
    metrics: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimingAnswer:
    """What came of an order.

    Attributes:
        times: Raw times in the store, a NumPy archive; None where nothing was timed.
        readings: What the board read beside them, as JSON.
        seconds: Wall time that the board took, by the server's clock.
        failure: Why nothing was timed; None where it was.
    """

    times: Digest | None = None
    readings: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    failure: str | None = None


class TimingQueue(Protocol):
    """The durable orders of one job."""

    def ask(self, order: TimingOrder) -> str:
        """Order times and return the order's id.

        The same order (trial, device, candidate) asked twice is one order. One that failed is
        tried again.
        """
        ...

    def answers(self, ids: Sequence[str]) -> Mapping[str, TimingAnswer]:
        """Return those of the orders that are answered, by id."""
        ...


@dataclasses.dataclass(slots=True)
class _Held:
    """A result that waits for boards."""

    finished: Finished
    outcome: Measured
    dense: bool
    orders: Mapping[str, DeviceSpec]
    answers: dict[str, TimingAnswer] = dataclasses.field(default_factory=dict)


class BoardWait:
    """Results of one job that wait for boards.

    A board that fails makes the whole attempt a retryable failure.

    Args:
        queue: Takes the orders.
        store: Where handed-over files, raw times and checkpoints are.
        devices: The job's devices; those of other places than boards are left alone.
    """

    def __init__(
        self, queue: TimingQueue, store: ArtifactStore, devices: Sequence[DeviceSpec]
    ) -> None:
        self._queue = queue
        self._store = store
        self._boards = tuple(device for device in devices if device.place == "agent")
        self._held: list[_Held] = []

    @property
    def waiting(self) -> frozenset[str]:
        """Ids of the trials whose results are kept back."""
        return frozenset(held.finished.work.trial.id for held in self._held)

    def take(self, report: Report) -> Report:
        """Return a report, or what is to be told instead of a result that is kept back."""
        if not isinstance(report, Finished) or ROLE not in report.artifacts:
            return report
        artifacts = {role: digest for role, digest in report.artifacts.items() if role != ROLE}
        finished = dataclasses.replace(report, artifacts=artifacts)
        if not isinstance(report.outcome, Measured):
            return finished
        document = json.loads(self._store.get(report.artifacts[ROLE]))
        orders = [_order(document, report.work, board) for board in self._boards]
        held = _Held(
            finished=finished,
            outcome=report.outcome,
            dense=all(order.candidate == order.baseline for order in orders),
            # In the order of the job's devices, which is that of their readings.
            orders={
                self._queue.ask(order): board
                for order, board in zip(orders, self._boards, strict=True)
            },
        )
        self._held.append(held)
        names = [board.name for board in self._boards]
        return Progress(work=report.work, data={"step": "boards", "devices": names})

    def answered(self) -> list[Finished]:
        """Return the results whose boards have all answered, or one of whose boards failed."""
        if not self._held:
            return []
        wanted = [
            order for held in self._held for order in held.orders if order not in held.answers
        ]
        answers = self._queue.answers(wanted)
        ended = []
        for held in list(self._held):
            held.answers.update({o: answers[o] for o in held.orders if o in answers})
            failed = any(answer.times is None for answer in held.answers.values())
            if failed or len(held.answers) == len(held.orders):
                self._held.remove(held)
                ended.append(self._ended(held))
        return ended

    def forget(self) -> None:
        """Keep nothing back. Orders stay: the job's next driver may want their answers."""
        self._held = []

    def _ended(self, held: _Held) -> Finished:
        """Return a result with what its boards measured."""
        seconds = dict(held.finished.seconds)
        spent = sum(answer.seconds for answer in held.answers.values())
        seconds[TIMING_STEP] = seconds.get(TIMING_STEP, 0.0) + spent
        finished = dataclasses.replace(held.finished, seconds=seconds)
        found: list[BoardTimes] = []
        device = ""
        try:
            for order, board in held.orders.items():
                device = board.name
                if order not in held.answers:
                    continue  # Another one failed.
                answer = held.answers[order]
                if answer.times is None:
                    return _failed(finished, f"{device}: {answer.failure}")
                times = self._store.get(answer.times)
                readings = board_readings(times, answer.readings, board, dense=held.dense)
                found.append(BoardTimes(device=board, times=answer.times, readings=readings))
            artifacts = with_boards(finished.artifacts, found, self._store)
        except (WorkerError, CompressionError, OSError) as error:
            return _failed(finished, f"{device}: {error}")
        readings = [reading for board in found for reading in board.readings]
        measurement = Measurement((*held.outcome.measurement.readings, *readings))
        return dataclasses.replace(
            finished,
            outcome=dataclasses.replace(held.outcome, measurement=measurement),
            artifacts=artifacts,
        )


class RemoteTimingExecutor:
    """See `workers.executor.Executor`; a result comes when every board has answered, too.

    Args:
        inner: Runs the attempts.
        boards: Keeps their results back.
    """

    def __init__(self, inner: Executor, boards: BoardWait) -> None:
        self.slots = inner.slots
        self._inner = inner
        self._boards = boards

    def submit(self, work: Work) -> None:
        """See `Executor`."""
        self._inner.submit(work)

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """See `Executor`."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            inner = self._inner.wait(min(left, POLL_S) if self._boards.waiting else left)
            reports = [self._boards.take(report) for report in inner]
            reports += self._boards.answered()
            if reports or not self._boards.waiting or time.monotonic() >= deadline:
                return reports
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))

    def close(self) -> None:
        """See `Executor`."""
        self._boards.forget()
        self._inner.close()


def _failed(finished: Finished, reason: str) -> Finished:
    return dataclasses.replace(finished, outcome=Failed(reason, retryable=True))


def _order(document: Mapping[str, Any], work: Work, board: DeviceSpec) -> TimingOrder:
    """Return the order that a hand-over means for a board."""
    parts = document["parts"]
    compare: Compare = "decisions" if document["compare"] == "decisions" else "values"
    return TimingOrder(
        trial_id=work.trial.id,
        device=board.name,
        candidate=Digest(parts[f"{board.runtime}.candidate"]),
        baseline=Digest(parts[f"{board.runtime}.baseline"]),
        probe=Digest(parts["probe"]),
        compare=compare,
        seed=int(document["seed"]),
        width=float(document["width"]),
        max_seconds=float(document["max_seconds"]),
        metrics=tuple(document["metrics"].get(board.name, ())),
    )
