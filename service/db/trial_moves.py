"""What happens to trials and attempts, within a transaction that holds the job's lease."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.agent import Evaluate, Prepare, Request
from search.measurement import Failed, Measured, Outcome, outcome_to_json
from search.trial import (
    BASELINE_AGENT,
    FINALIST_AGENT,
    MAX_ATTEMPTS,
    MEMORY_AGENT,
    SEARCH_FIDELITIES,
    AttemptState,
    Fidelity,
    TrialState,
    check_transition,
    state_of,
)
from service.db import events, trials
from service.db.columns import new_id
from service.db.tables import AttemptRow, JobRow, TrialRow
from workers.memory import Remembered

Key = tuple[str, Fidelity, str, str]
"""Plan digest, fidelity, base (empty: the job's model) and preparation (empty: none); unique
within a job."""

WARM_START = "job.warm_start"
"""Kind of the event that tells how many trials a job began with; at most one in a job."""

REASON_CHARS = 500
"""Of a failure's text in an event; the attempt keeps all of it."""


def key_of(request: Request) -> Key:
    """Return what makes a request the same trial."""
    base = request.base or ""
    if isinstance(request, Prepare):
        return (request.plan.digest, Fidelity.PREPARED, base, request.preparation.key)
    return (request.plan.digest, request.fidelity, base, "")


def trial_seed(job_seed: int, number: int) -> int:
    """Return the seed of a job's trial: 32 bits that differ between jobs and trials."""
    return int.from_bytes(hashlib.sha256(f"{job_seed}:{number}".encode()).digest()[:4], "big")


def propose(
    session: Session, job: JobRow, request: Request, agent: str, now: datetime.datetime
) -> TrialRow:
    """Write a new trial under the job's next number."""
    row = _new_row(job, request, agent, now)
    session.add(row)
    session.flush()
    note(session, "trial.proposed", row, agent=agent, plan_digest=row.plan_digest)
    return row


def remember(
    session: Session, job: JobRow, known: Sequence[Remembered], now: datetime.datetime
) -> int:
    """Write what other jobs have measured as finished proxies; return how many were new here.

    One event tells of all of them: nothing has happened to any.
    """
    fidelity = Fidelity.PROXY
    digests = select(TrialRow.plan_digest).where(
        TrialRow.job_id == job.id, TrialRow.fidelity == fidelity, TrialRow.base == ""
    )
    have = set(session.scalars(digests))
    written = 0
    for item in known:
        if item.plan.digest in have:
            continue
        have.add(item.plan.digest)
        row = _new_row(job, Evaluate(plan=item.plan, fidelity=fidelity), MEMORY_AGENT, now)
        row.state = TrialState.RUNNING
        _finish(job, row, item.outcome, now)
        session.add(row)
        written += 1
    session.flush()
    events.append(session, job.id, WARM_START, {"trials": written})
    return written


def _new_row(job: JobRow, request: Request, agent: str, now: datetime.datetime) -> TrialRow:
    """Return a trial under the job's next number, not yet in any session."""
    plan_digest, fidelity, base, preparation_key = key_of(request)
    preparation = request.preparation.to_json() if isinstance(request, Prepare) else None
    row = TrialRow(
        id=new_id("trl"),
        job_id=job.id,
        number=job.next_number,
        plan=request.plan.to_json(),
        plan_digest=plan_digest,
        fidelity=fidelity,
        base=base,
        preparation=preparation,
        preparation_key=preparation_key,
        seed=trial_seed(job.seed, job.next_number),
        agent=agent,
        state=TrialState.PROPOSED,
        artifacts={},
        proposed_at=now,
    )
    job.next_number += 1
    return row


def close(
    attempt: AttemptRow, state: AttemptState, now: datetime.datetime, reason: str | None
) -> None:
    """End an attempt."""
    attempt.state, attempt.ended_at = state, now
    # A native library's message may contain what PostgreSQL's text cannot hold.
    attempt.reason = reason and reason.replace("\0", "?").encode(errors="replace").decode()


def reopen(session: Session, row: TrialRow, attempt: AttemptRow, reason: str) -> None:
    """Make a trial PROPOSED again after an attempt that came to nothing."""
    check_transition(row.state, TrialState.PROPOSED)
    row.state = TrialState.PROPOSED
    session.flush()
    note(session, "trial.retried", row, attempt=attempt.epoch, reason=reason[:REASON_CHARS])


def lose(
    session: Session,
    job: JobRow,
    row: TrialRow,
    attempt: AttemptRow,
    reason: str,
    now: datetime.datetime,
) -> None:
    """End a live attempt as LOST: its trial is tried again, or fails with none left."""
    close(attempt, AttemptState.LOST, now, reason)
    if attempt.epoch < MAX_ATTEMPTS:
        reopen(session, row, attempt, reason)
        return
    error = f"Attempt {attempt.epoch} of {MAX_ATTEMPTS} was lost: {reason}"
    settle(session, job, row, Failed(error, retryable=True), now)


def settle(
    session: Session, job: JobRow, row: TrialRow, outcome: Outcome, now: datetime.datetime
) -> None:
    """Write a trial's outcome, its place in the order of recording, and what it counts."""
    _finish(job, row, outcome, now)
    session.flush()
    note(session, "trial.finished", row, recorded=row.recorded)


def _finish(job: JobRow, row: TrialRow, outcome: Outcome, now: datetime.datetime) -> None:
    after = state_of(outcome)
    check_transition(row.state, after)
    row.state, row.finished_at = after, now
    row.resume = ""  # Nobody goes on from there: its blobs need not be kept.
    row.recorded = job.next_recorded
    job.next_recorded += 1
    free = row.agent in (BASELINE_AGENT, MEMORY_AGENT, FINALIST_AGENT)
    if row.fidelity in SEARCH_FIDELITIES and not free:
        job.spent_trials += 1
    if isinstance(outcome, Measured):
        row.found = dict(outcome.found) or None
        readings = outcome.measurement.readings
        row.readings = [trials.reading_row(row.id, i, r) for i, r in enumerate(readings)]
    else:
        row.failure = outcome_to_json(outcome)


def note(session: Session, kind: str, row: TrialRow, **more: int | str | None) -> None:
    """Append a small event about a trial."""
    payload = {
        "trial_id": row.id,
        "number": row.number,
        "state": row.state.value,
        "fidelity": row.fidelity.value,
        **more,
    }
    events.append(session, row.job_id, kind, payload)
