"""The finalists' race: what of it is written down, and the port of what drives it.

A finalist that falls behind on the way to its full recovery is given up. The ledger is the only
truth: how far each one came is in its newest checkpoint, what it scored on the way is there too,
and in a file of the trial once it has ended. So a race whose driver dies goes on with the next.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from compression.artifact import Digest
from search.measurement import Failed, Infeasible
from search.trial import FINISHED, Trial
from workers.errors import BlobMissing
from workers.executor import CHECKPOINT, Finished, Progress, Work
from workers.ledger import Ledger
from workers.loop import answered
from workers.memory import JobMemory
from workers.remote_timing import BoardWait
from workers.store import ArtifactStore

logger = logging.getLogger(__name__)

RUNG = "rung"
"""Key of progress: the trial reached a rung of the race; counted from 1."""

SCORE = "score"
"""Key of progress beside it: accuracy on search-validation, of the model as it stood there."""

RACE_ROLE = "race"
"""Role of the artifact that says what a trial scored at its rungs."""

RUNGS = 2


def rung_shares(reduction: int) -> tuple[float, ...]:
    """Return after which shares of its recovery a trial is compared: 1/4 and 1/2 for halving."""
    return tuple(float(reduction) ** (number - RUNGS) for number in range(RUNGS))


class Race(Protocol):
    """Recovers finalists, and gives up those that fall behind."""

    def run(
        self,
        trials: Sequence[Trial],
        rivals: Mapping[str, frozenset[str]],
        ledger: Ledger,
        memory: JobMemory | None = None,
    ) -> list[Trial]:
        """Run or resume a race to its end.

        A trial that is given up ends as `Infeasible`, since no number of it is of a recovered
        model; the reason says where and why. The others end exactly as without a race.

        Args:
            trials: Of fidelity `full`; finished ones are returned as they are.
            rivals: Which trials may outrun which one, by id; see `search.finalists.rivals`.
            ledger: Of the job.
            memory: What is known already; who is given up is not remembered.

        Returns:
            The trials that finished, in the given order; all of them unless the job was cancelled.

        Raises:
            LeaseLost: Another conductor took over; nothing more was written.
        """
        ...


class Entries:
    """The trials of one race as the ledger has them; every change is written there first.

    Attributes:
        scores: What each trial scored at the rungs that it reached, by id.
        cancelled: The user wants no more.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        ledger: Ledger,
        store: ArtifactStore,
        memory: JobMemory | None = None,
        boards: BoardWait | None = None,
    ) -> None:
        self.scores: dict[str, list[float]] = {trial.id: [] for trial in trials}
        self.cancelled = False
        self._trials = tuple(trials)
        self._ledger = ledger
        self._store = store
        self._memory = memory
        self._boards = boards
        self._ended = {trial.id: trial for trial in trials if trial.state in FINISHED}
        self._queue = deque(trial for trial in trials if trial.state not in FINISHED)
        self._live: dict[str, Work] = {}
        for trial in self._ended.values():
            self._remember(trial.id, trial.artifacts.get(RACE_ROLE))

    @property
    def waiting(self) -> int:
        """How many trials nobody works at; 0 once cancelled."""
        return 0 if self.cancelled else len(self._queue)

    @property
    def timed(self) -> frozenset[str]:
        """Ids of the trials that only wait for boards; none once cancelled."""
        return frozenset() if self.cancelled or self._boards is None else self._boards.waiting

    def start(self) -> Work | None:
        """Begin an attempt at the next trial that nobody knows yet; None where none waits."""
        while self.waiting:
            trial = self._queue.popleft()
            work = Work(trial=trial, attempt=self._ledger.start(trial))
            known = answered(work, self._ledger, self._memory)
            if known is None:
                self._remember(trial.id, work.attempt.resume)
                self._live[trial.id] = work
                return work
            self._stands(known)
        return None

    def note(self, work: Work, data: Mapping[str, Any]) -> None:
        """Write down what a running attempt says of itself."""
        if CHECKPOINT in data:
            self._ledger.keep(work.attempt, Digest(data[CHECKPOINT]))
            return
        if RUNG in data:
            known = self.scores[work.trial.id]
            known[:] = [*known[: data[RUNG] - 1], float(data[SCORE])]
        self._ledger.event("trial.progress", {"trial_id": work.trial.id, **data})

    def finish(self, finished: Finished) -> None:
        """Write down what came of an attempt, and what the trial scored on the way.

        Where boards are to time its file that waits for them, and is done by a later `look`.
        """
        report = finished if self._boards is None else self._boards.take(finished)
        if isinstance(report, Progress):
            self.note(report.work, report.data)
        elif isinstance(report, Finished):
            self._settle(report)

    def _settle(self, finished: Finished) -> None:
        if self._end(finished) and self._memory is not None:
            self._memory.keep(finished)

    def give_up(self, work: Work, reason: str) -> None:
        """Write down that a trial fell behind."""
        self._end(Finished(work=work, outcome=Infeasible(reason)))

    def _end(self, finished: Finished) -> bool:
        """Record a result with the trial's scores; False where nobody waits for it any more."""
        trial = finished.work.trial
        if self._live.pop(trial.id, None) is None:
            return False
        scores = self.scores[trial.id]
        if scores and not isinstance(finished.outcome, Failed):
            document = json.dumps({"scores": scores}).encode()
            role = {RACE_ROLE: self._store.put(document)}
            finished = dataclasses.replace(finished, artifacts={**finished.artifacts, **role})
        recorded = self._ledger.record(finished)
        self._stands(recorded)
        return recorded is not None

    def lose(self, work: Work, reason: str) -> None:
        """Write down that an attempt's process died; nothing where the attempt has ended."""
        if self._boards is not None and work.trial.id in self._boards.waiting:
            return  # All that it had to do is done.
        if self._live.pop(work.trial.id, None) is not None:
            logger.warning("attempt lost", extra={"trial": work.trial.id, "reason": reason})
            self._stands(self._ledger.lost(work.attempt, reason))

    def lose_all(self, reason: str) -> None:
        """Write down that every running attempt's process died."""
        for work in list(self._live.values()):
            self.lose(work, reason)

    def look(self) -> None:
        """Renew the lease, see whether the user cancelled, and write down what boards answered.

        Raises:
            LeaseLost: Another conductor took over.
        """
        self.cancelled = self._ledger.wish() == "cancel"
        if self._boards is not None:
            for finished in self._boards.answered():
                self._settle(finished)

    def ended(self) -> list[Trial]:
        """Return the finished trials in the order of the race."""
        return [self._ended[trial.id] for trial in self._trials if trial.id in self._ended]

    def _stands(self, trial: Trial | None) -> None:
        """Sort in a trial whose attempt ended; None where a newer attempt is someone else's."""
        if trial is not None and trial.state in FINISHED:
            self._ended[trial.id] = trial
        elif trial is not None:
            self._queue.append(trial)

    def _remember(self, trial_id: str, digest: Digest | None) -> None:
        """Read the scores of a trial from its checkpoint or its file."""
        if digest is None:
            return
        try:
            found = json.loads(self._store.get(digest)).get("scores", [])
        except (BlobMissing, ValueError, AttributeError):
            return  # The recovery begins anew then, and scores again.
        self.scores[trial_id] = [float(score) for score in found]
