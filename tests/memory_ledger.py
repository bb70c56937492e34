"""The ledger of a job in memory: durable as long as its book lives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compression.artifact import Digest
from search.agent import Evaluate, Prepare, Request, Snapshot
from search.budget import Spent
from search.measurement import Failed, Outcome
from search.trial import (
    BASELINE_AGENT,
    FINALIST_AGENT,
    FINISHED,
    MAX_ATTEMPTS,
    MEMORY_AGENT,
    SEARCH_FIDELITIES,
    Attempt,
    AttemptState,
    Fidelity,
    Trial,
    TrialState,
    check_transition,
    state_of,
)
from workers.errors import LeaseLost
from workers.executor import Finished
from workers.ledger import Wish
from workers.memory import REMEMBERED, Remembered

Key = tuple[str, Fidelity, str, str]


@dataclasses.dataclass
class Book:
    """What survives a conductor: trials, attempts, events, and who holds the job."""

    owner: str = "first"
    wish: Wish = "run"
    seed: int = 0
    trials: dict[str, Trial] = dataclasses.field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = dataclasses.field(default_factory=dict)
    events: list[tuple[str, Mapping[str, Any]]] = dataclasses.field(default_factory=list)
    checkpoints: dict[str, Digest] = dataclasses.field(default_factory=dict)
    remembered: set[str] = dataclasses.field(default_factory=set)
    snapshot: Snapshot | None = None
    wall_s: float = 0.0
    device_s: float = 0.0


class MemoryLedger:
    """Implements `workers.ledger.Ledger` for one conductor of one job."""

    def __init__(
        self, book: Book, owner: str = "first", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.book = book
        self._owner = owner
        self._clock = clock
        self._looked_at: float | None = None

    def trials(self) -> Sequence[Trial]:
        return list(self.book.trials.values())

    def snapshot(self) -> Snapshot | None:
        return self.book.snapshot

    def spent(self) -> Spent:
        counted = (
            trial
            for trial in self.book.trials.values()
            if trial.state in FINISHED
            and trial.fidelity in SEARCH_FIDELITIES
            and trial.agent not in (BASELINE_AGENT, MEMORY_AGENT, FINALIST_AGENT)
        )
        return Spent(
            trials=sum(1 for _ in counted), wall_s=self.book.wall_s, device_s=self.book.device_s
        )

    def wish(self) -> Wish:
        self._fence()
        now = self._clock()
        if self._looked_at is not None:
            self.book.wall_s += now - self._looked_at
        self._looked_at = now
        return self.book.wish

    def propose(
        self, requests: Sequence[Request], *, agent: str, snapshot: Snapshot | None
    ) -> Sequence[Trial]:
        self._fence()
        if snapshot is not None:
            self.book.snapshot = snapshot
        known: dict[Key, Trial] = {
            (
                trial.plan.digest,
                trial.fidelity,
                trial.base or "",
                trial.preparation.key if trial.preparation else "",
            ): trial
            for trial in self.book.trials.values()
        }
        answers = []
        for request in requests:
            key = _key(request)
            if key not in known:
                number = len(self.book.trials)
                known[key] = Trial(
                    id=f"trl_{number:016d}",
                    number=number,
                    plan=request.plan,
                    fidelity=key[1],
                    base=request.base,
                    preparation=request.preparation if isinstance(request, Prepare) else None,
                    seed=self.book.seed + number,
                    agent=agent,
                )
                self.book.trials[known[key].id] = known[key]
                self.book.attempts[known[key].id] = []
            answers.append(known[key])
        return answers

    def start(self, trial: Trial) -> Attempt:
        self._fence()
        now = self.book.trials[trial.id]
        attempts = self.book.attempts[trial.id]
        if now.state is not TrialState.RUNNING:
            check_transition(now.state, TrialState.RUNNING)
        elif attempts[-1].state is AttemptState.RUNNING:
            self._close(attempts[-1], AttemptState.LOST)
        epoch = len(attempts) + 1
        attempt = Attempt(
            id=f"att_{trial.number}_{epoch}",
            trial_id=trial.id,
            epoch=epoch,
            resume=self.book.checkpoints.get(trial.id),
        )
        attempts.append(attempt)
        self._update(now, state=TrialState.RUNNING)
        return attempt

    def keep(self, attempt: Attempt, checkpoint: Digest) -> None:
        self._fence()
        attempts = self.book.attempts[attempt.trial_id]
        newest = attempts[-1] if attempts else None
        if newest and newest.id == attempt.id and newest.state is AttemptState.RUNNING:
            self.book.checkpoints[attempt.trial_id] = checkpoint

    def record(self, finished: Finished) -> Trial | None:
        self._fence()
        trial = self.book.trials[finished.work.trial.id]
        attempts = self.book.attempts[trial.id]
        newest = attempts[-1] if attempts else None
        if newest is None or newest.id != finished.work.attempt.id:
            return None
        if newest.state is AttemptState.LOST:
            return None
        if newest.state is not AttemptState.RUNNING:
            return trial
        if REMEMBERED in finished.seconds:
            self.book.remembered.add(trial.id)
        self.book.device_s += finished.seconds.get("time", 0.0)
        outcome = finished.outcome
        if isinstance(outcome, Failed):
            self._close(newest, AttemptState.FAILED)
            if outcome.retryable and newest.epoch < MAX_ATTEMPTS:
                return self._update(trial, state=TrialState.PROPOSED)
        else:
            self._close(newest, AttemptState.SUCCEEDED)
        return self._settle(trial, outcome, artifacts=dict(finished.artifacts))

    def lost(self, attempt: Attempt, reason: str) -> Trial:
        self._fence()
        trial = self.book.trials[attempt.trial_id]
        live = next(a for a in self.book.attempts[trial.id] if a.id == attempt.id)
        if live.state is not AttemptState.RUNNING:
            return trial
        self._close(live, AttemptState.LOST)
        if live.epoch < MAX_ATTEMPTS:
            return self._update(trial, state=TrialState.PROPOSED)
        error = f"Attempt {live.epoch} of {MAX_ATTEMPTS} was lost: {reason}"
        return self._settle(trial, Failed(error, retryable=True), artifacts={})

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        self._fence()
        self.book.events.append((kind, dict(payload)))

    def warm_start(self, known: Sequence[Remembered]) -> int:
        self._fence()
        begun = any(kind == "job.warm_start" for kind, _ in self.book.events)
        if begun or any(t.agent != BASELINE_AGENT for t in self.book.trials.values()):
            return 0
        written = 0
        for item in known:
            before = len(self.book.trials)
            request = Evaluate(plan=item.plan)
            (trial,) = self.propose([request], agent=MEMORY_AGENT, snapshot=None)
            if len(self.book.trials) > before:
                running = self._update(trial, state=TrialState.RUNNING)
                self._settle(running, item.outcome, artifacts={})
                written += 1
        self.event("job.warm_start", {"trials": written})
        return written

    def _fence(self) -> None:
        if self.book.owner != self._owner:
            raise LeaseLost(f"{self.book.owner} holds the job, not {self._owner}")

    def _close(self, attempt: Attempt, state: AttemptState) -> None:
        attempts = self.book.attempts[attempt.trial_id]
        attempts[attempt.epoch - 1] = dataclasses.replace(attempt, state=state)

    def _settle(self, trial: Trial, outcome: Outcome, *, artifacts: Mapping[str, Any]) -> Trial:
        recorded = sum(t.recorded is not None for t in self.book.trials.values())
        return self._update(
            trial,
            state=state_of(outcome),
            outcome=outcome,
            artifacts=artifacts,
            recorded=recorded,
        )

    def _update(self, trial: Trial, **changes: Any) -> Trial:
        after = dataclasses.replace(trial, **changes)
        if after.state is not trial.state:
            check_transition(trial.state, after.state)
        self.book.trials[trial.id] = after
        return after


def _key(request: Request) -> Key:
    base = request.base or ""
    if isinstance(request, Prepare):
        return (request.plan.digest, Fidelity.PREPARED, base, request.preparation.key)
    return (request.plan.digest, request.fidelity, base, "")
