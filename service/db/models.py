"""Uploaded models: stored, surveyed once by a worker, then immutable."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compression.artifact import ModelArtifact
from service.db import scanning
from service.db.columns import new_id, utc_now
from service.db.errors import NotFound
from service.db.page import Page, encode_cursor
from service.db.tables import ModelRow
from service.scan_state import ScanState

SCAN_LEASE_S = 600.0
"""A survey of a large model takes seconds; after this long its process is taken for dead."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model as the database has it.

    Attributes:
        id: `mdl_...`.
        name: The user's name for it.
        state: Whether jobs may use it.
        artifact: What was uploaded.
        summary: What the survey found, for people; None until READY.
        problem: Why it was rejected, as a problem document; None otherwise.
        created_at: Moment of the upload.
        updated_at: Moment of the last change.
    """

    id: str
    name: str
    state: ScanState
    artifact: ModelArtifact
    summary: Mapping[str, Any] | None
    problem: Mapping[str, Any] | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


def create(
    session: Session, *, name: str, artifact: ModelArtifact, model_id: str | None = None
) -> StoredModel:
    """Store a model in state SCANNING; `model_id` None draws one."""
    now = utc_now()
    row = ModelRow(
        id=model_id or new_id("mdl"),
        name=name,
        state=ScanState.SCANNING,
        artifact=artifact.to_json(),
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    session.flush()
    return _stored(row)


def get(session: Session, model_id: str) -> StoredModel:
    """Return a model.

    Raises:
        NotFound: There is none of this id.
    """
    return _stored(scanning.load(session, ModelRow, "model", model_id))


def survey(session: Session, model_id: str) -> Mapping[str, Any] | None:
    """Return the stored survey (sites, costs, summary); None until READY.

    Raises:
        NotFound: There is no model of this id.
    """
    row = session.execute(select(ModelRow.survey).where(ModelRow.id == model_id)).first()
    if row is None:
        raise NotFound("model", model_id)
    found: Mapping[str, Any] | None = row[0]
    return found


def page(session: Session, *, cursor: str | None = None, limit: int = 50) -> Page[StoredModel]:
    """Return models, newest first.

    Raises:
        CursorInvalid: The cursor is not of this listing.
    """
    rows = scanning.newest_first(session, ModelRow, "models", cursor, limit)
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(
        [_stored(row) for row in rows[:limit]],
        encode_cursor("models", last.created_at.isoformat(), last.id) if last else None,
    )


def claim_scanning(
    session: Session,
    owner: str,
    lease_s: float = SCAN_LEASE_S,
    *,
    now: datetime.datetime | None = None,
) -> StoredModel | None:
    """Take the oldest model that waits for its survey; None when there is none."""
    row = scanning.claim(session, ModelRow, owner, lease_s=lease_s, now=now)
    return None if row is None else _stored(row)


def set_ready(
    session: Session,
    model_id: str,
    *,
    survey: Mapping[str, Any],
    summary: Mapping[str, Any],
    owner: str | None = None,
) -> StoredModel:
    """Store the survey: the model becomes READY.

    Raises:
        NotFound: There is none of this id.
        LeaseLost: It is decided already, or scanned by another owner than the given one.
    """
    row = scanning.load(session, ModelRow, "model", model_id)
    scanning.expect_scanning(row, owner)
    scanning.close(row, ScanState.READY)
    row.survey, row.summary = dict(survey), dict(summary)
    session.flush()
    return _stored(row)


def set_rejected(
    session: Session, model_id: str, problem: Mapping[str, Any] | str, *, owner: str | None = None
) -> StoredModel:
    """Store why the model cannot be used, a problem document or its detail: it becomes REJECTED.

    Raises:
        NotFound: There is none of this id.
        LeaseLost: It is decided already, or scanned by another owner than the given one.
    """
    row = scanning.load(session, ModelRow, "model", model_id)
    scanning.reject(row, problem, owner)
    session.flush()
    return _stored(row)


def _stored(row: ModelRow) -> StoredModel:
    return StoredModel(
        id=row.id,
        name=row.name,
        state=row.state,
        artifact=ModelArtifact.from_json(row.artifact),
        summary=row.summary,
        problem=row.problem,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
