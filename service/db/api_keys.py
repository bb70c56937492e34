"""Keys to the API: shown once, kept as a hash."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.columns import new_id, utc_now
from service.db.errors import NotFound
from service.db.tables import ApiKeyRow

MARK = "ppk"
"""How every key begins, so that secret scanners can find leaked ones."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredApiKey:
    """A key without its secret.

    Attributes:
        id: `key_...`.
        name: What it is for.
        prefix: Public part, by which people recognise it.
        scopes: What it may do.
        created_at: Moment it was made.
        expires_at: Moment it ends; None never.
        revoked_at: Moment it was revoked; None if it was not.
    """

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    revoked_at: datetime.datetime | None


def create(
    session: Session,
    *,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime.datetime | None = None,
) -> tuple[StoredApiKey, str]:
    """Make a key; return it with its text `ppk_<prefix>_<secret>`, which nobody sees again."""
    prefix, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    row = ApiKeyRow(
        id=new_id("key"),
        name=name,
        prefix=prefix,
        secret_sha256=_hash(secret),
        scopes=list(scopes),
        created_at=utc_now(),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return _stored(row), f"{MARK}_{prefix}_{secret}"


def verify(
    session: Session, text: str, *, now: datetime.datetime | None = None
) -> StoredApiKey | None:
    """Return the live key with this text; None for a wrong, expired or revoked one."""
    mark, _, rest = text.partition("_")
    prefix, _, secret = rest.partition("_")
    if mark != MARK or not prefix or not secret:
        return None
    row = session.scalars(select(ApiKeyRow).where(ApiKeyRow.prefix == prefix)).first()
    if row is None or not hmac.compare_digest(row.secret_sha256, _hash(secret)):
        return None
    if row.revoked_at is not None:
        return None
    if row.expires_at is not None and row.expires_at <= (now or utc_now()):
        return None
    return _stored(row)


def revoke(session: Session, key_id: str) -> StoredApiKey:
    """End a key now; revoking again changes nothing.

    Raises:
        NotFound: There is none of this id.
    """
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFound("API key", key_id)
    row.revoked_at = row.revoked_at or utc_now()
    session.flush()
    return _stored(row)


def everything(session: Session) -> Sequence[StoredApiKey]:
    """Return all keys, oldest first, revoked ones too."""
    query = select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
    return [_stored(row) for row in session.scalars(query)]


def _hash(secret: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(secret.encode()).hexdigest()


def _stored(row: ApiKeyRow) -> StoredApiKey:
    return StoredApiKey(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
