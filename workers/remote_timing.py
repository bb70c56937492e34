"""Times of boards: the port of what is ordered of them, and the executor that waits for it.

A worker that evaluates a trial hands its deployed file over (`workers.handover`). The wrapped
executor orders the file's times of every board that the job names, keeps the result back until all
have answered, and adds their readings to it. What is ordered is named by what it is, so whoever
drives the job next finds what was answered and orders only what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from compression.artifact import Digest
from search.device import DeviceSpec
from search.measurement import Failed, Measured, Measurement
from workers.board_readings import board_readings
from workers.errors import WorkerError
from workers.executor import Executor, Finished, Progress, Report, Work
from workers.store import ArtifactStore

logger = logging.getLogger(__name__)

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
    measurement: Measurement
    open: dict[str, DeviceSpec]
    readings: list[Any] = dataclasses.field(default_factory=list)
    dense: bool = False
    seconds: float = 0.0


class RemoteTimingExecutor:
    """See `workers.executor.Executor`; a result comes when every board has answered, too.

    A board that fails makes the whole attempt a retryable failure.

    Args:
        inner: Runs the attempts.
        queue: Takes the orders.
        store: Where handed-over files and raw times are.
        devices: The job's devices; those of other places than boards are left alone.
    """

    def __init__(
        self,
        inner: Executor,
        queue: TimingQueue,
        store: ArtifactStore,
        devices: Sequence[DeviceSpec],
    ) -> None:
        self.slots = inner.slots
        self._inner = inner
        self._queue = queue
        self._store = store
        self._boards = tuple(device for device in devices if device.place == "agent")
        self._held: list[_Held] = []

    def submit(self, work: Work) -> None:
        """See `Executor`."""
        self._inner.submit(work)

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """See `Executor`."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            reports: list[Report] = []
            for report in self._inner.wait(min(left, POLL_S) if self._held else left):
                reports += self._taken(report)
            reports += self._answered()
            if reports or not self._held or time.monotonic() >= deadline:
                return reports
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))

    def close(self) -> None:
        """See `Executor`. Orders stay: the job's next driver may want their answers."""
        self._held = []
        self._inner.close()

    def _taken(self, report: Report) -> list[Report]:
        """Return what of a report is passed on now."""
        if not isinstance(report, Finished) or ROLE not in report.artifacts:
            return [report]
        artifacts = {role: digest for role, digest in report.artifacts.items() if role != ROLE}
        finished = dataclasses.replace(report, artifacts=artifacts)
        if not isinstance(report.outcome, Measured):
            return [finished]
        document = json.loads(self._store.get(report.artifacts[ROLE]))
        held = _Held(finished=finished, measurement=report.outcome.measurement, open={})
        for board in self._boards:
            order = _order(document, report.work, board)
            held.dense = order.candidate == order.baseline
            held.open[self._queue.ask(order)] = board
        self._held.append(held)
        names = [board.name for board in self._boards]
        return [Progress(work=report.work, data={"step": "boards", "devices": names})]

    def _answered(self) -> list[Report]:
        """Return the results whose boards have all answered, or one of whose boards failed."""
        wanted = [order for held in self._held for order in held.open]
        if not wanted:
            return []
        answers = self._queue.answers(wanted)
        reports: list[Report] = []
        for held in list(self._held):
            ended = self._ended(held, answers)
            if ended is not None:
                self._held.remove(held)
                reports.append(ended)
        return reports

    def _ended(self, held: _Held, answers: Mapping[str, TimingAnswer]) -> Finished | None:
        for order in [order for order in held.open if order in answers]:
            board, answer = held.open.pop(order), answers[order]
            held.seconds += answer.seconds
            if answer.times is None:
                reason = f"{board.name}: {answer.failure}"
                return dataclasses.replace(held.finished, outcome=Failed(reason, retryable=True))
            try:
                times = self._store.get(answer.times)
                held.readings += board_readings(times, answer.readings, board, dense=held.dense)
            except WorkerError as error:
                failed = Failed(f"{board.name}: {error}", retryable=True)
                return dataclasses.replace(held.finished, outcome=failed)
        if held.open:
            return None
        readings = (*held.measurement.readings, *held.readings)
        outcome = held.finished.outcome
        assert isinstance(outcome, Measured)
        seconds = dict(held.finished.seconds)
        seconds[TIMING_STEP] = seconds.get(TIMING_STEP, 0.0) + held.seconds
        return dataclasses.replace(
            held.finished,
            outcome=dataclasses.replace(outcome, measurement=Measurement(readings)),
            seconds=seconds,
        )


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
