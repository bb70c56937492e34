"""`Idempotency-Key`: a request that comes twice is answered twice and done once.

Used in the transaction that creates the resource, so that key and resource appear together:
`begin`, create, `finish`. A process that dies before the commit leaves neither.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.db.columns import utc_now
from service.db.errors import KeyInFlight, KeyReused, NotFound
from service.db.tables import IdempotencyKeyRow

KEEP_S = 24 * 3600.0
"""How long an answer is remembered."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was answered to the first request.

    Attributes:
        status: HTTP status.
        headers: Those worth repeating (`Location`).
        body: JSON body.
    """

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def get(
    session: Session,
    key: str,
    *,
    request_digest: str,
    principal: str = "",
    now: datetime.datetime | None = None,
) -> Answer | None:
    """Return the answer to an earlier request with this key; None when there was none.

    Args:
        session: Reading or writing.
        key: The header's value.
        request_digest: SHA-256 of method, route and body.
        principal: Who asks; keys of different principals do not meet.
        now: The present moment; None asks the clock.

    Raises:
        KeyReused: The earlier request was another one.
        KeyInFlight: It has not been answered yet.
    """
    row = session.get(IdempotencyKeyRow, (principal, key), populate_existing=True)
    if row is None or row.expires_at <= (now or utc_now()):
        return None
    if row.request_digest != request_digest:
        raise KeyReused(f"Idempotency-Key {key!r} came before with another request")
    if row.status is None:
        raise KeyInFlight(f"The request with Idempotency-Key {key!r} is still being answered")
    headers = {name: str(value) for name, value in (row.headers or {}).items()}
    return Answer(status=row.status, headers=headers, body=row.body or {})


def begin(
    session: Session,
    key: str,
    *,
    request_digest: str,
    principal: str = "",
    keep_s: float = KEEP_S,
    now: datetime.datetime | None = None,
) -> Answer | None:
    """Return the earlier answer, or None after marking this request as the first; see `get`.

    Raises:
        KeyReused: The earlier request was another one.
        KeyInFlight: It has not been answered yet.
    """
    now = now or utc_now()
    expire(session, now=now)
    answer = get(session, key, request_digest=request_digest, principal=principal, now=now)
    if answer is not None:
        return answer
    row = IdempotencyKeyRow(
        principal=principal,
        key=key,
        request_digest=request_digest,
        created_at=now,
        expires_at=now + datetime.timedelta(seconds=keep_s),
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        # On PostgreSQL a concurrent first request has just committed.
        return get(session, key, request_digest=request_digest, principal=principal, now=now)
    return None


def finish(session: Session, key: str, answer: Answer, *, principal: str = "") -> None:
    """Remember the answer to the request that `begin` marked.

    Raises:
        NotFound: `begin` was not called.
    """
    row = session.get(IdempotencyKeyRow, (principal, key))
    if row is None:
        raise NotFound("Idempotency-Key", key)
    row.status, row.headers, row.body = answer.status, dict(answer.headers), dict(answer.body)
    session.flush()


def expire(session: Session, *, now: datetime.datetime | None = None) -> int:
    """Forget answers whose time is over; return how many."""
    gone = session.scalars(
        delete(IdempotencyKeyRow)
        .where(IdempotencyKeyRow.expires_at <= (now or utc_now()))
        .returning(IdempotencyKeyRow.key)
    )
    return len(gone.all())
