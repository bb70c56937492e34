"""Uploaded or named datasets: stored, checked once by a worker, then immutable."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from service.db import scanning
from service.db.columns import new_id, utc_now
from service.db.page import Page, encode_cursor
from service.db.tables import DatasetRow
from service.scan_state import ScanState
from workers.job import DatasetArtifact

SCAN_LEASE_S = 1800.0
"""Decoding and splitting many images takes minutes; after this long its process is dead."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """A dataset as the database has it.

    Attributes:
        id: `dst_...`.
        name: The user's name for it.
        state: Whether jobs may use it.
        artifact: What was uploaded or named.
        summary: Rows by split, classes, shapes; None until READY.
        problem: Why it was rejected, as a problem document; None otherwise.
        created_at: Moment of the upload.
        updated_at: Moment of the last change.
    """

    id: str
    name: str
    state: ScanState
    artifact: DatasetArtifact
    summary: Mapping[str, Any] | None
    problem: Mapping[str, Any] | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


def create(
    session: Session, *, name: str, artifact: DatasetArtifact, dataset_id: str | None = None
) -> StoredDataset:
    """Store a dataset in state SCANNING; `dataset_id` None draws one."""
    now = utc_now()
    row = DatasetRow(
        id=dataset_id or new_id("dst"),
        name=name,
        state=ScanState.SCANNING,
        artifact=artifact.to_json(),
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    session.flush()
    return _stored(row)


def get(session: Session, dataset_id: str) -> StoredDataset:
    """Return a dataset.

    Raises:
        NotFound: There is none of this id.
    """
    return _stored(scanning.load(session, DatasetRow, "dataset", dataset_id))


def page(session: Session, *, cursor: str | None = None, limit: int = 50) -> Page[StoredDataset]:
    """Return datasets, newest first.

    Raises:
        CursorInvalid: The cursor is not of this listing.
    """
    rows = scanning.newest_first(session, DatasetRow, "datasets", cursor, limit)
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(
        [_stored(row) for row in rows[:limit]],
        encode_cursor("datasets", last.created_at.isoformat(), last.id) if last else None,
    )


def claim_scanning(
    session: Session,
    owner: str,
    lease_s: float = SCAN_LEASE_S,
    *,
    now: datetime.datetime | None = None,
) -> StoredDataset | None:
    """Take the oldest dataset that waits for its check; None when there is none."""
    row = scanning.claim(session, DatasetRow, owner, lease_s=lease_s, now=now)
    return None if row is None else _stored(row)


def set_ready(
    session: Session, dataset_id: str, summary: Mapping[str, Any], *, owner: str | None = None
) -> StoredDataset:
    """Store the summary: the dataset becomes READY.

    Raises:
        NotFound: There is none of this id.
        LeaseLost: It is decided already, or scanned by another owner than the given one.
    """
    row = scanning.load(session, DatasetRow, "dataset", dataset_id)
    scanning.expect_scanning(row, owner)
    scanning.close(row, ScanState.READY)
    row.summary = dict(summary)
    session.flush()
    return _stored(row)


def set_rejected(
    session: Session, dataset_id: str, problem: Mapping[str, Any] | str, *, owner: str | None = None
) -> StoredDataset:
    """Store why the dataset cannot be used, a problem document or its detail: it becomes REJECTED.

    Raises:
        NotFound: There is none of this id.
        LeaseLost: It is decided already, or scanned by another owner than the given one.
    """
    row = scanning.load(session, DatasetRow, "dataset", dataset_id)
    scanning.reject(row, problem, owner)
    session.flush()
    return _stored(row)


def _stored(row: DatasetRow) -> StoredDataset:
    return StoredDataset(
        id=row.id,
        name=row.name,
        state=row.state,
        artifact=DatasetArtifact.from_json(row.artifact),
        summary=row.summary,
        problem=row.problem,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
