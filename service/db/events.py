"""The append-only log of a job: what watchers see, and what a reconnecting one missed."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db.columns import utc_now
from service.db.errors import NotFound
from service.db.tables import EventRow, JobRow


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An entry of a job's log.

    Attributes:
        job_id: Which job.
        seq: 1, 2, 3, ... within the job, without gaps.
        kind: For example `trial.finished`.
        payload: Small JSON: ids and what changed.
        at: Moment of writing.
    """

    job_id: str
    seq: int
    kind: str
    payload: Mapping[str, Any]
    at: datetime.datetime


def append(session: Session, job_id: str, kind: str, payload: Mapping[str, Any]) -> int:
    """Append an event and return its number. Non-finite numbers in it become null.

    The job's counter is locked until the transaction ends, so numbers become visible in order.

    Raises:
        NotFound: There is no such job.
    """
    following = session.scalar(
        update(JobRow)
        .where(JobRow.id == job_id)
        .values(next_event=JobRow.next_event + 1)
        .returning(JobRow.next_event)
        .execution_options(synchronize_session=False)
    )
    if following is None:
        raise NotFound("job", job_id)
    event = EventRow(
        job_id=job_id, seq=following - 1, kind=kind, payload=_finite(dict(payload)), at=utc_now()
    )
    session.add(event)
    session.flush()
    return event.seq


def after(
    session: Session, job_id: str, seq: int = 0, *, limit: int = 100
) -> Sequence[StoredEvent]:
    """Return the events after number `seq`, oldest first; none for an unknown job."""
    rows = session.scalars(
        select(EventRow)
        .where(EventRow.job_id == job_id, EventRow.seq > seq)
        .order_by(EventRow.seq)
        .limit(limit)
    )
    return [_stored(row) for row in rows]


def newest(session: Session, job_id: str, kind: str) -> StoredEvent | None:
    """Return the job's last event of a kind; None where there is none."""
    row = session.scalars(
        select(EventRow)
        .where(EventRow.job_id == job_id, EventRow.kind == kind)
        .order_by(EventRow.seq.desc())
        .limit(1)
    ).first()
    if row is None:
        return None
    return _stored(row)


def _stored(row: EventRow) -> StoredEvent:
    return StoredEvent(
        job_id=row.job_id, seq=row.seq, kind=row.kind, payload=row.payload, at=row.at
    )


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
