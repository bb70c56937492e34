"""The ledger of a job in SQL: every method is one transaction, fenced by the job's lease."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session, selectinload

from compression.artifact import Digest
from search.agent import Request, Snapshot
from search.budget import Spent
from search.measurement import Failed
from search.trial import (
    BASELINE_AGENT,
    MAX_ATTEMPTS,
    Attempt,
    AttemptState,
    Trial,
    TrialState,
    check_transition,
)
from service.db import artifacts, events, jobs, lease, snapshots, trial_moves, trials
from service.db.columns import new_id, utc_now
from service.db.errors import NotFound
from service.db.session import Database
from service.db.tables import AttemptRow, JobRow, TrialRow
from workers.executor import Finished
from workers.ledger import Wish
from workers.memory import Remembered

TIMING_STEP = "time"
"""The step whose seconds are spent on a device."""


class SqlLedger:
    """Implements `workers.ledger.Ledger` for one claim of one job.

    Used by one thread at a time; several ledgers of several jobs may share a database.
    """

    def __init__(
        self,
        database: Database,
        job_id: str,
        owner: str,
        epoch: int,
        lease_s: float = lease.LEASE_S,
        clock: Callable[[], datetime.datetime] = utc_now,
        size_of: Callable[[Digest], int] | None = None,
    ) -> None:
        """Open the ledger under a claim that `service.db.lease.claim_job` gave.

        Args:
            database: Where the job is.
            job_id: The claimed job.
            owner: Who claimed it.
            epoch: The claim's epoch.
            lease_s: Seconds by which every write pushes the lease's end.
            clock: The present moment, aware.
            size_of: An artifact's size in bytes, for its record (`ArtifactStore.size_bytes`).
        """
        self._database = database
        self._job_id = job_id
        self._owner = owner
        self._epoch = epoch
        self._lease_s = lease_s
        self._clock = clock
        self._size_of = size_of
        self._looked_at: datetime.datetime | None = None

    @contextmanager
    def fenced(self) -> Iterator[Session]:
        """Yield a writing session that holds the lease until its commit.

        Raises:
            LeaseLost: Another conductor holds the job; nothing was written.
        """
        with self._database.write() as session:
            lease.renew(
                session,
                self._job_id,
                self._owner,
                self._epoch,
                lease_s=self._lease_s,
                now=self._clock(),
            )
            yield session

    def trials(self) -> Sequence[Trial]:
        """See `Ledger`."""
        with self._database.read() as session:
            return trials.everything(session, self._job_id)

    def snapshot(self) -> Snapshot | None:
        """See `Ledger`."""
        with self._database.read() as session:
            return snapshots.get(session, self._job_id)

    def spent(self) -> Spent:
        """See `Ledger`."""
        with self._database.read() as session:
            return jobs.get(session, self._job_id).spent

    def wish(self) -> Wish:
        """See `Ledger`. The time since the last call under this claim counts as spent."""
        now = self._clock()
        passed_s = 0.0
        if self._looked_at is not None:
            # A clock that was set back has not given time back.
            passed_s = max(0.0, (now - self._looked_at).total_seconds())
        with self.fenced() as session:
            wish = session.scalar(
                update(JobRow)
                .where(JobRow.id == self._job_id)
                .values(spent_wall_s=JobRow.spent_wall_s + passed_s)
                .returning(JobRow.wish)
                .execution_options(synchronize_session=False)
            )
            if wish is None:
                raise NotFound("job", self._job_id)
        self._looked_at = now
        return "cancel" if wish.value == "cancel" else "run"

    def propose(
        self, requests: Sequence[Request], *, agent: str, snapshot: Snapshot | None
    ) -> Sequence[Trial]:
        """See `Ledger`. A trial's seed follows from the job's seed and the trial's number."""
        with self.fenced() as session:
            if snapshot is not None:
                snapshots.put(session, self._job_id, snapshot)
            job = self._locked_job(session)
            known = self._known(session, requests)
            answers: list[Trial] = []
            for request in requests:
                key = trial_moves.key_of(request)
                if key not in known:
                    known[key] = trial_moves.propose(session, job, request, agent, self._clock())
                answers.append(trials.trial_of(known[key]))
            return answers

    def start(self, trial: Trial) -> Attempt:
        """See `Ledger`.

        Raises:
            IllegalTransition: The trial has finished.
            NotFound: The job has no such trial.
        """
        with self.fenced() as session:
            row = self._locked_trial(session, trial.id)
            now = self._clock()
            for older in row.attempts:
                if older.state is AttemptState.RUNNING:
                    trial_moves.close(
                        older, AttemptState.LOST, now, "its conductor began another attempt"
                    )
            if row.state is not TrialState.RUNNING:
                check_transition(row.state, TrialState.RUNNING)
                row.state = TrialState.RUNNING
            # The older attempt must be closed in the database before a live one can be added.
            session.flush()
            attempt = AttemptRow(
                id=new_id("att"),
                trial_id=row.id,
                epoch=len(row.attempts) + 1,
                state=AttemptState.RUNNING,
                owner=self._owner,
                started_at=now,
            )
            row.attempts.append(attempt)
            session.flush()
            trial_moves.note(session, "trial.started", row, attempt=attempt.epoch)
            return _attempt_of(attempt, row.resume)

    def keep(self, attempt: Attempt, checkpoint: Digest) -> None:
        """See `Ledger`."""
        with self.fenced() as session:
            row = self._locked_trial(session, attempt.trial_id)
            newest = row.attempts[-1] if row.attempts else None
            if newest is None or newest.id != attempt.id:
                return
            if newest.state is AttemptState.RUNNING:
                row.resume = checkpoint

    def record(self, finished: Finished) -> Trial | None:
        """See `Ledger`. Recording the same attempt again changes nothing and answers the same."""
        attempt_id = finished.work.attempt.id
        with self.fenced() as session:
            row = self._locked_trial(session, finished.work.trial.id)
            attempt = row.attempts[-1] if row.attempts else None
            if attempt is None or attempt.id != attempt_id or attempt.state is AttemptState.LOST:
                return None
            if attempt.state is not AttemptState.RUNNING:
                return trials.trial_of(row)
            outcome, now = finished.outcome, self._clock()
            attempt.seconds = {step: float(s) for step, s in finished.seconds.items()}
            job = self._locked_job(session)
            job.spent_device_s += float(finished.seconds.get(TIMING_STEP, 0.0))
            if isinstance(outcome, Failed):
                trial_moves.close(attempt, AttemptState.FAILED, now, outcome.error)
                if outcome.retryable and attempt.epoch < MAX_ATTEMPTS:
                    trial_moves.reopen(session, row, attempt, outcome.error)
                    return trials.trial_of(row)
            else:
                trial_moves.close(attempt, AttemptState.SUCCEEDED, now, None)
            for role, digest in finished.artifacts.items():
                size = self._size_of(digest) if self._size_of else None
                artifacts.register(session, digest, role, size_bytes=size)
            row.artifacts = dict(finished.artifacts)
            trial_moves.settle(session, job, row, outcome, now)
            return trials.trial_of(row)

    def lost(self, attempt: Attempt, reason: str) -> Trial:
        """See `Ledger`. An attempt that is closed already stays as it is."""
        with self.fenced() as session:
            row = self._locked_trial(session, attempt.trial_id)
            live = next((a for a in row.attempts if a.id == attempt.id), None)
            if live is None:
                raise NotFound("attempt", attempt.id)
            if live.state is AttemptState.RUNNING:
                trial_moves.lose(
                    session, self._locked_job(session), row, live, reason, self._clock()
                )
            return trials.trial_of(row)

    def abandon(self, reason: str) -> Sequence[Trial]:
        """Close the live attempts that an earlier conductor left, and return their trials.

        Called once by a conductor that takes a job up, so that a trial whose attempts keep
        killing their conductor ends as FAILED instead of being tried for ever.
        """
        with self.fenced() as session:
            query = (
                select(TrialRow)
                .where(TrialRow.job_id == self._job_id, TrialRow.state == TrialState.RUNNING)
                .order_by(TrialRow.number)
                .options(selectinload(TrialRow.attempts))
            )
            job, now = self._locked_job(session), self._clock()
            rows = list(session.scalars(query))
            for row in rows:
                trial_moves.lose(session, job, row, row.attempts[-1], reason, now)
            return [trials.trial_of(row) for row in rows]

    def warm_start(self, known: Sequence[Remembered]) -> int:
        """See `Ledger`. One transaction: a conductor that dies in it leaves nothing of it."""
        with self.fenced() as session:
            job = self._locked_job(session)
            begun = events.newest(session, job.id, trial_moves.WARM_START)
            searched = session.scalars(
                select(TrialRow.id)
                .where(TrialRow.job_id == job.id, TrialRow.agent != BASELINE_AGENT)
                .limit(1)
            ).first()
            if begun is not None or searched is not None:
                return 0
            return trial_moves.remember(session, job, known, self._clock())

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """See `Ledger`."""
        with self.fenced() as session:
            events.append(session, self._job_id, kind, payload)

    def _locked_job(self, session: Session) -> JobRow:
        row = session.get(JobRow, self._job_id, with_for_update=True, populate_existing=True)
        if row is None:
            raise NotFound("job", self._job_id)
        return row

    def _locked_trial(self, session: Session, trial_id: str) -> TrialRow:
        row = session.get(TrialRow, trial_id, with_for_update=True)
        if row is None or row.job_id != self._job_id:
            raise NotFound(f"trial of job {self._job_id}", trial_id)
        return row

    def _known(
        self, session: Session, requests: Sequence[Request]
    ) -> dict[trial_moves.Key, TrialRow]:
        digests = {request.plan.digest for request in requests}
        rows = session.scalars(
            select(TrialRow)
            .where(TrialRow.job_id == self._job_id, TrialRow.plan_digest.in_(sorted(digests)))
            .options(selectinload(TrialRow.readings))
        )
        return {(row.plan_digest, row.fidelity, row.base, row.preparation_key): row for row in rows}


def _attempt_of(row: AttemptRow, resume: str) -> Attempt:
    return Attempt(
        id=row.id,
        trial_id=row.trial_id,
        epoch=row.epoch,
        state=row.state,
        resume=Digest(resume) if resume else None,
    )
