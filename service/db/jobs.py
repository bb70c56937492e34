"""Jobs: what was asked, where it stands, what it has used."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, tuple_, update
from sqlalchemy.orm import Session

from compression.plan import canonical_json
from search.budget import Spent
from service.db import events, trials
from service.db.columns import new_id, utc_now
from service.db.errors import NotFound
from service.db.page import Page, check_limit, decode_cursor, encode_cursor
from service.db.tables import JobRow, JobTransitionRow, LeaseRow
from service.job_state import ENDED, JobOutcome, JobState, JobWish, check_transition


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job as the database has it.

    Attributes:
        id: `job_...`.
        name: The user's name for it.
        model_id: Its model.
        dataset_id: Its dataset.
        state: Where it stands.
        wish: What the user wants of it.
        outcome: What came of it; None until it ended.
        spec: The resolved `workers.job.JobSpec` as JSON.
        spec_digest: SHA-256 of the spec's canonical JSON.
        request: What the user posted.
        labels: The user's labels.
        seed: Of everything random.
        problem: Why it failed, as a problem document; None otherwise.
        spent: What it has used.
        last_event: Number of its newest event; grows with every visible change.
        created_at: Moment of submission.
        updated_at: Moment of the last move.
        started_at: Moment it first ran.
        ended_at: Moment it ended.
    """

    id: str
    name: str
    model_id: str
    dataset_id: str
    state: JobState
    wish: JobWish
    outcome: JobOutcome | None
    spec: Mapping[str, Any]
    spec_digest: str
    request: Mapping[str, Any]
    labels: Mapping[str, str]
    seed: int
    problem: Mapping[str, Any] | None
    spent: Spent
    last_event: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One move of a job; `before` None is its submission."""

    before: JobState | None
    after: JobState
    reason: str
    at: datetime.datetime


def create(
    session: Session,
    *,
    name: str,
    model_id: str,
    dataset_id: str,
    spec: Mapping[str, Any],
    request: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    seed: int = 0,
    job_id: str | None = None,
) -> StoredJob:
    """Store a job in state QUEUED, with its first event.

    Args:
        session: Writing.
        name: The user's name for it.
        model_id: A stored model.
        dataset_id: A stored dataset.
        spec: The resolved job specification as JSON.
        request: What the user posted; None stores the spec.
        labels: The user's labels.
        seed: Of everything random.
        job_id: Drawn with `new_id("job")` where the spec had to know it; None draws one.
    """
    now = utc_now()
    row = JobRow(
        id=job_id or new_id("job"),
        name=name,
        model_id=model_id,
        dataset_id=dataset_id,
        state=JobState.QUEUED,
        wish=JobWish.RUN,
        spec=dict(spec),
        spec_digest=hashlib.sha256(canonical_json(spec).encode()).hexdigest(),
        request=dict(spec if request is None else request),
        labels=dict(labels or {}),
        seed=seed,
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    session.flush()
    session.add(LeaseRow(job_id=row.id))
    _note(session, row.id, None, JobState.QUEUED, "submitted", now)
    session.refresh(row)
    return _stored(row)


def get(session: Session, job_id: str) -> StoredJob:
    """Return a job.

    Raises:
        NotFound: There is none of this id.
    """
    return _stored(_load(session, job_id))


def page(
    session: Session,
    *,
    cursor: str | None = None,
    limit: int = 50,
    state: JobState | None = None,
    labels: Mapping[str, str] | None = None,
) -> Page[StoredJob]:
    """Return jobs, newest first; all given labels must match.

    Raises:
        CursorInvalid: The cursor is not of this listing.
    """
    query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc())
    if state is not None:
        query = query.where(JobRow.state == state)
    for key, value in (labels or {}).items():
        query = query.where(JobRow.labels[key].as_string() == value)
    if cursor is not None:
        at, job_id = decode_cursor("jobs", cursor, str, str)
        moment = datetime.datetime.fromisoformat(str(at))
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(moment, job_id))
    rows = list(session.scalars(query.limit(check_limit(limit) + 1)))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(
        [_stored(row) for row in rows[:limit]],
        encode_cursor("jobs", last.created_at.isoformat(), last.id) if last else None,
    )


def transition(
    session: Session,
    job_id: str,
    to: JobState,
    reason: str,
    *,
    outcome: JobOutcome | None = None,
    problem: Mapping[str, Any] | None = None,
) -> StoredJob:
    """Move a job, with its history and an event `job.<state>`; an ended job lets go of all.

    Args:
        session: Writing; a conductor fences it first (`service.db.lease.renew`).
        job_id: Which job.
        to: The next state.
        reason: Why, in words.
        outcome: What came of it, for ended states.
        problem: Why it failed, as a problem document.

    Raises:
        NotFound: There is no such job.
        IllegalTransition: `to` cannot follow the present state, which may just have changed.
    """
    row = _lock(session, job_id)
    before, now = row.state, utc_now()
    check_transition(before, to)
    row.state, row.updated_at = to, now
    if outcome is not None:
        row.outcome = outcome
    if problem is not None:
        row.problem = dict(problem)
    if to is JobState.RUNNING:
        row.started_at = now
    if to in ENDED:
        row.ended_at = now
        trials.cancel_open(session, job_id)
        # Whoever drove the job has nothing more to write.
        session.execute(
            update(LeaseRow).where(LeaseRow.job_id == job_id).values(owner=None, expires_at=None)
        )
    session.flush()
    _note(session, job_id, before, to, reason, now, outcome)
    session.refresh(row)
    return _stored(row)


def finish(
    session: Session,
    job_id: str,
    state: JobState,
    outcome: JobOutcome,
    reason: str | None = None,
) -> StoredJob:
    """End a job; one whose user cancelled it meanwhile becomes CANCELLED, unless it failed.

    Args:
        session: Writing; a conductor fences it first (`service.db.lease.renew`).
        job_id: Which job.
        state: SUCCEEDED, FAILED or CANCELLED.
        outcome: What came of it.
        reason: Why, in words; of a FAILED job it becomes the problem's detail.

    Raises:
        NotFound: There is no such job.
        IllegalTransition: It cannot end so from its present state.
    """
    if state is JobState.SUCCEEDED and _lock(session, job_id).state is JobState.CANCELLING:
        state, outcome, reason = JobState.CANCELLED, JobOutcome.CANCELLED, "cancelled at its end"
    problem = {"detail": reason} if reason and state is JobState.FAILED else None
    return transition(
        session, job_id, state, reason or outcome.value, outcome=outcome, problem=problem
    )


def request_cancel(session: Session, job_id: str, reason: str = "asked by the user") -> StoredJob:
    """Ask for a job's end: a QUEUED one is CANCELLED at once, a running one is CANCELLING.

    Asking again changes nothing.

    Raises:
        NotFound: There is no such job.
        IllegalTransition: It has ended otherwise.
    """
    row = _lock(session, job_id)
    if row.state in (JobState.CANCELLING, JobState.CANCELLED):
        return _stored(row)
    queued = row.state is JobState.QUEUED
    to = JobState.CANCELLED if queued else JobState.CANCELLING
    check_transition(row.state, to)
    row.wish = JobWish.CANCEL
    session.flush()
    return transition(session, job_id, to, reason, outcome=JobOutcome.CANCELLED if queued else None)


def transitions(session: Session, job_id: str) -> Sequence[Transition]:
    """Return the job's moves, oldest first."""
    rows = session.scalars(
        select(JobTransitionRow)
        .where(JobTransitionRow.job_id == job_id)
        .order_by(JobTransitionRow.id)
    )
    return [Transition(before=r.before, after=r.after, reason=r.reason, at=r.at) for r in rows]


def _load(session: Session, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None:
        raise NotFound("job", job_id)
    return row


def _lock(session: Session, job_id: str) -> JobRow:
    """Return the row as it is now, locked until the transaction ends.

    The lease comes first, as in every writing transaction of a job's owner: one order of locks.
    """
    session.get(LeaseRow, job_id, with_for_update=True, populate_existing=True)
    row = session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound("job", job_id)
    return row


def _note(
    session: Session,
    job_id: str,
    before: JobState | None,
    after: JobState,
    reason: str,
    at: datetime.datetime,
    outcome: JobOutcome | None = None,
) -> None:
    session.add(JobTransitionRow(job_id=job_id, before=before, after=after, reason=reason, at=at))
    payload = {"state": after, "reason": reason, "outcome": outcome}
    events.append(session, job_id, f"job.{after.lower()}", payload)


def _stored(row: JobRow) -> StoredJob:
    return StoredJob(
        id=row.id,
        name=row.name,
        model_id=row.model_id,
        dataset_id=row.dataset_id,
        state=row.state,
        wish=row.wish,
        outcome=row.outcome,
        spec=row.spec,
        spec_digest=row.spec_digest,
        request=row.request,
        labels=row.labels,
        seed=row.seed,
        problem=row.problem,
        spent=Spent(trials=row.spent_trials, wall_s=row.spent_wall_s, device_s=row.spent_device_s),
        last_event=row.next_event - 1,
        created_at=row.created_at,
        updated_at=row.updated_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
