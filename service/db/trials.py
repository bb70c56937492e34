"""Trials as people and agents read them; the ledger writes them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session, selectinload

from compression.artifact import Digest
from compression.plan import Plan
from search.measurement import Interval, Measured, Measurement, Outcome, Reading, outcome_from_json
from search.trial import (
    MEMORY_AGENT,
    AttemptState,
    Fidelity,
    Preparation,
    Trial,
    TrialState,
)
from service.db import artifacts
from service.db.columns import utc_now
from service.db.errors import NotFound
from service.db.page import Page, check_limit, decode_cursor, encode_cursor
from service.db.tables import AttemptRow, ReadingRow, TrialRow
from workers.memory import REMEMBERED


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredAttempt:
    """One execution of a trial.

    Attributes:
        id: `att_...`.
        epoch: 1, 2, ... within the trial.
        state: Where it stands.
        owner: The conductor that opened it.
        reason: Why it failed or was lost; None otherwise.
        seconds: Wall seconds by step; empty until it ended.
        started_at: Moment it was opened.
        ended_at: Moment it was closed.
    """

    id: str
    epoch: int
    state: AttemptState
    owner: str
    reason: str | None
    seconds: Mapping[str, float]
    started_at: datetime.datetime
    ended_at: datetime.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrial:
    """A trial with what only the database knows of it.

    Attributes:
        trial: As agents see it, readings within its outcome.
        job_id: Its job.
        plan: The plan as JSON, as stored.
        plan_digest: The plan's name.
        attempts: Oldest first.
        artifact_ids: Role to `art_...` id.
        proposed_at: Moment it was asked for.
        finished_at: Moment its outcome was recorded.
    """

    trial: Trial
    job_id: str
    plan: Mapping[str, Any]
    plan_digest: str
    attempts: tuple[StoredAttempt, ...]
    artifact_ids: Mapping[str, str]
    proposed_at: datetime.datetime
    finished_at: datetime.datetime | None

    @property
    def id(self) -> str:
        """The trial's identifier, `trl_...`."""
        return self.trial.id

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What was measured; empty for an unfinished or failed trial."""
        outcome = self.trial.outcome
        return outcome.measurement.readings if isinstance(outcome, Measured) else ()

    @property
    def remembered(self) -> bool:
        """Whether its outcome is that of an earlier job's trial."""
        known = any(REMEMBERED in attempt.seconds for attempt in self.attempts)
        return known or self.trial.agent == MEMORY_AGENT


def get(session: Session, trial_id: str) -> StoredTrial:
    """Return a trial.

    Raises:
        NotFound: There is none of this id.
    """
    found = _stored_all(session, select(TrialRow).where(TrialRow.id == trial_id))
    if not found:
        raise NotFound("trial", trial_id)
    return found[0]


def page(
    session: Session,
    job_id: str,
    *,
    cursor: str | None = None,
    limit: int = 100,
    state: TrialState | None = None,
    fidelity: Fidelity | None = None,
) -> Page[StoredTrial]:
    """Return a job's trials in the order of proposal; none for an unknown job.

    Raises:
        CursorInvalid: The cursor is not of this listing.
    """
    query = select(TrialRow).where(TrialRow.job_id == job_id)
    if state is not None:
        query = query.where(TrialRow.state == state)
    if fidelity is not None:
        query = query.where(TrialRow.fidelity == fidelity)
    if cursor is not None:
        (number,) = decode_cursor("trials", cursor, int)
        query = query.where(TrialRow.number > number)
    found = _stored_all(session, query.limit(check_limit(limit) + 1))
    more = len(found) > limit
    return Page(
        found[:limit], encode_cursor("trials", found[limit - 1].trial.number) if more else None
    )


def everything(session: Session, job_id: str) -> Sequence[Trial]:
    """Return all trials of a job in the order of proposal."""
    query = select(TrialRow).where(TrialRow.job_id == job_id).order_by(TrialRow.number)
    rows = session.scalars(query.options(selectinload(TrialRow.readings)))
    return [trial_of(row) for row in rows]


def counts(session: Session, job_ids: Sequence[str]) -> Mapping[str, Mapping[TrialState, int]]:
    """Return for each job how many trials are in each state, in one query."""
    table: dict[str, dict[TrialState, int]] = {job_id: {} for job_id in job_ids}
    rows = session.execute(
        select(TrialRow.job_id, TrialRow.state, func.count())
        .where(TrialRow.job_id.in_(job_ids))
        .group_by(TrialRow.job_id, TrialRow.state)
    )
    for job_id, state, count in rows:
        table[job_id][state] = count
    return table


def warm(session: Session, job_id: str) -> int:
    """Return how many trials a job began with, measured in earlier jobs."""
    mine = (TrialRow.job_id == job_id, TrialRow.agent == MEMORY_AGENT)
    return session.scalar(select(func.count()).select_from(TrialRow).where(*mine)) or 0


def cancel_open(session: Session, job_id: str) -> int:
    """Close what an ended job leaves: open trials CANCELLED, live attempts LOST.

    Returns:
        How many trials were open.
    """
    now = utc_now()
    unfinished = (TrialState.PROPOSED, TrialState.RUNNING)
    mine = select(TrialRow.id).where(TrialRow.job_id == job_id)
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.trial_id.in_(mine), AttemptRow.state == AttemptState.RUNNING)
        .values(state=AttemptState.LOST, reason="the job ended", ended_at=now)
    )
    closed = session.scalars(
        update(TrialRow)
        .where(TrialRow.job_id == job_id, TrialRow.state.in_(unfinished))
        .values(state=TrialState.CANCELLED, finished_at=now)
        .returning(TrialRow.id)
    )
    return len(closed.all())


def trial_of(row: TrialRow) -> Trial:
    """Return a row as agents see it; its readings are loaded on the way."""
    outcome: Outcome | None = None
    if row.state is TrialState.MEASURED:
        readings = tuple(_reading(reading) for reading in row.readings)
        outcome = Measured(Measurement(readings), dict(row.found or {}))
    elif row.failure is not None:
        outcome = outcome_from_json(row.failure)
    return Trial(
        id=row.id,
        number=row.number,
        plan=Plan.from_json(row.plan),
        fidelity=row.fidelity,
        base=Digest(row.base) if row.base else None,
        preparation=Preparation.from_json(row.preparation) if row.preparation else None,
        seed=row.seed,
        agent=row.agent,
        state=row.state,
        outcome=outcome,
        artifacts={role: Digest(digest) for role, digest in row.artifacts.items()},
        recorded=row.recorded,
    )


def reading_row(trial_id: str, position: int, reading: Reading) -> ReadingRow:
    """Return a reading as a row of its trial."""
    ratio = reading.ratio
    return ReadingRow(
        trial_id=trial_id,
        position=position,
        metric=reading.metric,
        device=reading.device or "",
        statistic=reading.statistic or "",
        value=reading.value,
        low=reading.low,
        high=reading.high,
        n=reading.n,
        split=reading.split,
        ratio_value=ratio.value if ratio else None,
        ratio_low=ratio.low if ratio else None,
        ratio_high=ratio.high if ratio else None,
        estimated=reading.estimated,
        warning=reading.warning,
    )


def _reading(row: ReadingRow) -> Reading:
    ratio = None
    if row.ratio_value is not None and row.ratio_low is not None and row.ratio_high is not None:
        ratio = Interval(value=row.ratio_value, low=row.ratio_low, high=row.ratio_high)
    return Reading(
        metric=row.metric,
        value=row.value,
        low=row.low,
        high=row.high,
        n=row.n,
        device=row.device or None,
        statistic=row.statistic or None,
        split=row.split,  # type: ignore[arg-type]  # only `reading_row` writes it
        ratio=ratio,
        estimated=row.estimated,
        warning=row.warning,
    )


def _stored_all(session: Session, query: Select[TrialRow]) -> list[StoredTrial]:
    """Run a query for trials: four statements, however many trials there are."""
    loaded = query.order_by(TrialRow.number).options(
        selectinload(TrialRow.readings), selectinload(TrialRow.attempts)
    )
    rows = list(session.scalars(loaded))
    found = [trial_of(row) for row in rows]
    artifact_ids = artifacts.ids(session, [trial.artifacts for trial in found])
    return [
        StoredTrial(
            trial=trial,
            job_id=row.job_id,
            plan=row.plan,
            plan_digest=row.plan_digest,
            attempts=tuple(_attempt(attempt) for attempt in row.attempts),
            artifact_ids=roles,
            proposed_at=row.proposed_at,
            finished_at=row.finished_at,
        )
        for row, trial, roles in zip(rows, found, artifact_ids, strict=True)
    ]


def _attempt(row: AttemptRow) -> StoredAttempt:
    return StoredAttempt(
        id=row.id,
        epoch=row.epoch,
        state=row.state,
        owner=row.owner,
        reason=row.reason,
        seconds=row.seconds or {},
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
