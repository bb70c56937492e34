"""Which blobs of the artifact store the database speaks of."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

from sqlalchemy import JSON, LargeBinary, String, Text, cast, func, or_, select
from sqlalchemy.orm import Session

from compression.artifact import Digest
from search.trial import AttemptState
from service.db.device_tables import TimingOrderRow
from service.db.tables import DIGEST_CHARS, AttemptRow, Tables
from service.db.timing_orders import OPEN

DIGEST = re.compile(rb"(?=([0-9a-f]{64}))")
"""Whatever may be a blob's name; also within longer runs of such characters."""

ROWS = 500
"""Read at once."""

HANDED_OVER = frozenset({"candidate", "baseline", "probe"})
"""Columns of timing orders whose blobs nobody reads once the order has ended. Whoever orders the
same again has put them again."""


def digests_in(data: bytes) -> set[Digest]:
    """Return everything in some bytes that may be a blob's name."""
    return {Digest(found[1].decode()) for found in DIGEST.finditer(data)}


def oldest_attempt(session: Session) -> datetime.datetime | None:
    """Return when the oldest attempt began that may still write; None where none runs."""
    running = AttemptRow.state == AttemptState.RUNNING
    return session.scalar(select(func.min(AttemptRow.started_at)).where(running))


def referenced(session: Session) -> set[Digest]:
    """Return all that may be a blob's name in any text, document or bytes of the database.

    Columns are not chosen by what they are for, so that a new one is looked at, too. Digests of
    other things are among what is found; they do no harm.
    """
    found: set[Digest] = set()
    for value in _values(session):
        found |= digests_in(value if isinstance(value, bytes) else value.encode())
    return found


def _values(session: Session) -> Iterator[str | bytes]:
    orders = TimingOrderRow.__table__
    for table in Tables.metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, LargeBinary):
                query = select(column).where(column.is_not(None))
            elif isinstance(column.type, String | JSON):
                as_text = cast(column, Text)
                # Most texts are shorter than any name.
                query = select(as_text).where(func.length(as_text) >= DIGEST_CHARS)
            else:
                continue
            if table is orders and column.name in HANDED_OVER:
                query = query.where(or_(*(TimingOrderRow.state == state for state in OPEN)))
            yield from session.execute(query).yield_per(ROWS).scalars()
