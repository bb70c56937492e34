"""Blobs of the artifact store that users may pull, and the roles they play."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from compression.artifact import Digest
from service.db.columns import new_id, utc_now
from service.db.errors import NotFound
from service.db.tables import ArtifactRow

FILES: Mapping[str, tuple[str, str]] = {
    "weights": ("model.safetensors", "application/octet-stream"),
    "onnx": ("model.onnx", "application/octet-stream"),
    "coded": ("model.ppz", "application/octet-stream"),
    "checkpoint": ("checkpoint.zip", "application/zip"),
    "code": ("model.py", "text/x-python"),
    "plan": ("plan.json", "application/json"),
    "patch": ("patch.json", "application/json"),
    "prepared": ("prepared.json", "application/json"),
    "report": ("report.json", "application/json"),
    "profile": ("profile.json", "application/json"),
    "card": ("README.md", "text/markdown"),
}
"""Role to the file name and media type under which it is pulled."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtifact:
    """A blob in a role.

    Attributes:
        id: `art_...`.
        digest: Its name in the artifact store.
        role: `onnx`, `checkpoint`, ...
        media_type: Of the HTTP answer.
        file_name: Under which it is saved.
        size_bytes: None where whoever registered it did not know.
        created_at: Moment of registration.
    """

    id: str
    digest: Digest
    role: str
    media_type: str
    file_name: str
    size_bytes: int | None
    created_at: datetime.datetime


def register(
    session: Session,
    digest: Digest,
    role: str,
    *,
    media_type: str | None = None,
    file_name: str | None = None,
    size_bytes: int | None = None,
) -> StoredArtifact:
    """Return the artifact of this (digest, role), stored now unless it is there already.

    File name and media type default to those of the role in `FILES`.
    """
    row = _find(session, digest, role)
    if row is None:
        usual_name, usual_type = FILES.get(role, (f"{role}.bin", "application/octet-stream"))
        row = ArtifactRow(
            id=new_id("art"),
            digest=digest,
            role=role,
            media_type=media_type or usual_type,
            file_name=file_name or usual_name,
            size_bytes=size_bytes,
            created_at=utc_now(),
        )
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            # On PostgreSQL another transaction may have been first; on SQLite none can.
            row = _find(session, digest, role)
            if row is None:
                raise
    if row.size_bytes is None and size_bytes is not None:
        row.size_bytes = size_bytes
        session.flush()
    return _stored(row)


def get(session: Session, artifact_id: str) -> StoredArtifact:
    """Return an artifact.

    Raises:
        NotFound: There is none of this id.
    """
    row = session.get(ArtifactRow, artifact_id)
    if row is None:
        raise NotFound("artifact", artifact_id)
    return _stored(row)


def ids(session: Session, named: Sequence[Mapping[str, Digest]]) -> Sequence[Mapping[str, str]]:
    """Return role to artifact id for each mapping of role to digest, in one query."""
    wanted = {(digest, role) for roles in named for role, digest in roles.items()}
    if not wanted:
        return [{} for _ in named]
    rows = session.execute(
        select(ArtifactRow.digest, ArtifactRow.role, ArtifactRow.id).where(
            tuple_(ArtifactRow.digest, ArtifactRow.role).in_(sorted(wanted))
        )
    )
    found = {(digest, role): artifact_id for digest, role, artifact_id in rows}
    return [
        {role: found[digest, role] for role, digest in roles.items() if (digest, role) in found}
        for roles in named
    ]


def _find(session: Session, digest: Digest, role: str) -> ArtifactRow | None:
    return session.scalars(
        select(ArtifactRow).where(ArtifactRow.digest == digest, ArtifactRow.role == role)
    ).first()


def _stored(row: ArtifactRow) -> StoredArtifact:
    return StoredArtifact(
        id=row.id,
        digest=Digest(row.digest),
        role=row.role,
        media_type=row.media_type,
        file_name=row.file_name,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )
