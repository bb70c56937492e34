"""The engine that runs trials: the port, and the one that runs them in this process."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from compression.artifact import Digest
from search.measurement import Outcome
from search.trial import Attempt, Trial


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One attempt at one trial."""

    trial: Trial
    attempt: Attempt


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What an attempt produced.

    Attributes:
        work: The attempt.
        outcome: What came of the trial.
        artifacts: Role to digest of the files it stored.
        seconds: Wall seconds by step (`apply`, `recalibrate`, `recover`, `score`, `export`,
            `quantize`, `time`, ...); their sum is about the attempt's wall time.
    """

    work: Work
    outcome: Outcome
    artifacts: Mapping[str, Digest] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The attempt's process died; says nothing about the plan."""

    work: Work
    reason: str


CHECKPOINT = "checkpoint"
"""Key of progress that names a stored checkpoint: for the ledger, not for watchers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a running attempt says of itself, for watchers: `{"step": ..., "done": ..., ...}`.

    `{"checkpoint": digest}` says instead where the next attempt could go on.
    """

    work: Work
    data: Mapping[str, Any]


Report = Finished | Lost | Progress


class Executor(Protocol):
    """Runs attempts. Each submitted work is answered once, by `Finished` or by `Lost`.

    Attributes:
        slots: Attempts it runs at once.
    """

    slots: int

    def submit(self, work: Work) -> None:
        """Start an attempt; at most `slots` are unanswered at any time."""
        ...

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """Return what came in, waiting up to `timeout_s` for the first."""
        ...

    def close(self) -> None:
        """Stop everything; unanswered work is abandoned."""
        ...


Runner = Callable[[Work, Callable[[Mapping[str, Any]], None]], Finished]
"""Runs one attempt to its end; the second argument takes progress."""


class InlineExecutor:
    """Runs each attempt in `wait`, in this process: for tests and laptops without Ray."""

    slots = 1

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._queue: deque[Work] = deque()

    def submit(self, work: Work) -> None:
        """See `Executor`."""
        self._queue.append(work)

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """See `Executor`."""
        if not self._queue:
            return []
        work = self._queue.popleft()
        reports: list[Report] = []
        finished = self._runner(work, lambda data: reports.append(Progress(work=work, data=data)))
        return [*reports, finished]

    def close(self) -> None:
        """See `Executor`."""
        self._queue.clear()
