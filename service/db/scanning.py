"""What models and datasets share: uploaded, opened once by a worker, then ready or rejected."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import or_, select, tuple_
from sqlalchemy.orm import Session

from service.db.columns import utc_now
from service.db.errors import NotFound
from service.db.page import check_limit, decode_cursor
from service.db.tables import DatasetRow, ModelRow
from service.scan_state import ScanState
from workers.errors import LeaseLost

Row = TypeVar("Row", ModelRow, DatasetRow)

MAX_SCANS = 3
"""Scans that may die before the upload is taken to be what kills them."""


def load(session: Session, table: type[Row], kind: str, row_id: str) -> Row:
    """Return a row.

    Raises:
        NotFound: There is none.
    """
    row = session.get(table, row_id)
    if row is None:
        raise NotFound(kind, row_id)
    return row


def newest_first(
    session: Session, table: type[Row], kind: str, cursor: str | None, limit: int
) -> list[Row]:
    """Return up to `limit + 1` rows after the cursor, newest first."""
    query = select(table).order_by(table.created_at.desc(), table.id.desc())
    if cursor is not None:
        at, row_id = decode_cursor(kind, cursor, str, str)
        moment = datetime.datetime.fromisoformat(str(at))
        query = query.where(tuple_(table.created_at, table.id) < tuple_(moment, row_id))
    return list(session.scalars(query.limit(check_limit(limit) + 1)))


def claim(
    session: Session,
    table: type[Row],
    owner: str,
    *,
    lease_s: float,
    now: datetime.datetime | None = None,
) -> Row | None:
    """Take the oldest row that waits for its scan, or whose scanner's lease ran out.

    A row whose scans died `MAX_SCANS` times is rejected instead.
    """
    now = now or utc_now()
    query = (
        select(table)
        .where(table.state == ScanState.SCANNING)
        .where(or_(table.scan_until.is_(None), table.scan_until <= now))
        .order_by(table.created_at, table.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    while (row := session.scalars(query).first()) is not None:
        if row.scans < MAX_SCANS:
            row.scans += 1
            row.scan_owner, row.scan_until = owner, now + datetime.timedelta(seconds=lease_s)
            session.flush()
            return row
        close(row, ScanState.REJECTED)
        row.problem = {
            "title": "Scan died",
            "detail": f"Its scans died {row.scans} times; {MAX_SCANS} is the limit",
        }
        session.flush()
    return None


def expect_scanning(row: ModelRow | DatasetRow, owner: str | None) -> None:
    """Refuse the result of a scan that is no longer this owner's.

    Raises:
        LeaseLost: The row is decided already, or another owner scans it.
    """
    if row.state is not ScanState.SCANNING or (owner is not None and row.scan_owner != owner):
        raise LeaseLost(
            f"{row.id} is {row.state}, scanned by {row.scan_owner!r}; the result of {owner!r} "
            "comes too late"
        )


def close(row: ModelRow | DatasetRow, state: ScanState) -> None:
    """Decide a scan and let go of its lease."""
    row.state = state
    row.scan_owner, row.scan_until = None, None
    row.updated_at = utc_now()


def reject(row: ModelRow | DatasetRow, problem: Mapping[str, Any] | str, owner: str | None) -> None:
    """Reject a row with a problem document, or with its detail alone.

    Raises:
        LeaseLost: See `expect_scanning`.
    """
    expect_scanning(row, owner)
    close(row, ScanState.REJECTED)
    row.problem = {"detail": problem} if isinstance(problem, str) else dict(problem)
