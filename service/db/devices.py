"""Devices: where time is measured, and the dense baselines measured there."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from compression.plan import canonical_json
from search.device import DeviceSpec
from service.db.columns import utc_now
from service.db.errors import NotFound
from service.db.tables import DeviceRow


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredDevice:
    """A device as the database has it.

    Attributes:
        spec: Runtime, threads, hardware.
        fingerprint: Digest of the spec: equal fingerprints time equally.
        created_at: First sight.
        seen_at: Last sight.
    """

    spec: DeviceSpec
    fingerprint: str
    created_at: datetime.datetime
    seen_at: datetime.datetime


def fingerprint(spec: DeviceSpec) -> str:
    """Return the SHA-256 of the device's canonical JSON: baselines are cached by it."""
    return hashlib.sha256(canonical_json(spec.to_json()).encode()).hexdigest()


def put(session: Session, spec: DeviceSpec) -> StoredDevice:
    """Store a device, or renew the one of this name."""
    now = utc_now()
    row = session.get(DeviceRow, spec.name)
    if row is None:
        row = DeviceRow(name=spec.name, created_at=now)
        session.add(row)
    row.spec, row.fingerprint, row.seen_at = spec.to_json(), fingerprint(spec), now
    session.flush()
    return _stored(row)


def get(session: Session, name: str) -> StoredDevice:
    """Return a device.

    Raises:
        NotFound: There is none of this name.
    """
    row = session.get(DeviceRow, name)
    if row is None:
        raise NotFound("device", name)
    return _stored(row)


def everything(session: Session) -> Sequence[StoredDevice]:
    """Return all devices by name."""
    return [_stored(row) for row in session.scalars(select(DeviceRow).order_by(DeviceRow.name))]


def _stored(row: DeviceRow) -> StoredDevice:
    return StoredDevice(
        spec=DeviceSpec.from_json(row.spec),
        fingerprint=row.fingerprint,
        created_at=row.created_at,
        seen_at=row.seen_at,
    )
