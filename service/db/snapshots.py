"""Agents' snapshots: JSON beside arrays in `.npz`, never a pickle."""

from __future__ import annotations

import io

import numpy as np
from sqlalchemy.orm import Session

from search.agent import Snapshot
from service.db.columns import utc_now
from service.db.tables import SnapshotRow

MARK = "array:"
"""Before each array's name in the archive: `numpy.savez` has parameters named `file`, ..."""


def put(session: Session, job_id: str, snapshot: Snapshot) -> None:
    """Replace the job's snapshot.

    Raises:
        ValueError: An array holds Python objects, or the data a number that is not finite.
    """
    packed = None
    if snapshot.arrays:
        buffer = io.BytesIO()
        named = {f"{MARK}{name}": np.asarray(array) for name, array in snapshot.arrays.items()}
        np.savez(buffer, allow_pickle=False, **named)
        packed = buffer.getvalue()
    session.merge(SnapshotRow(job_id=job_id, data=dict(snapshot.data), arrays=packed, at=utc_now()))
    session.flush()


def get(session: Session, job_id: str) -> Snapshot | None:
    """Return the job's snapshot; None before the first."""
    row = session.get(SnapshotRow, job_id)
    if row is None:
        return None
    if row.arrays is None:
        return Snapshot(row.data)
    with np.load(io.BytesIO(row.arrays), allow_pickle=False) as archive:
        return Snapshot(row.data, {name[len(MARK) :]: archive[name] for name in archive.files})
