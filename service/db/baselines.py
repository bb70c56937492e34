"""Dense baselines, measured once per model, dataset and device for all jobs."""

from __future__ import annotations

from sqlalchemy.orm import Session

from search.measurement import Measurement
from service.db.columns import utc_now
from service.db.tables import BaselineRow


def get(
    session: Session, *, model_id: str, dataset_id: str, fingerprint: str
) -> Measurement | None:
    """Return what was measured of the dense model; None when it was not yet.

    `fingerprint` is the device's, or any digest of all devices that the measurement covers.
    """
    row = session.get(BaselineRow, (model_id, dataset_id, fingerprint))
    return None if row is None else Measurement.from_json(list(row.readings))


def put(
    session: Session,
    measurement: Measurement,
    *,
    model_id: str,
    dataset_id: str,
    fingerprint: str,
) -> None:
    """Store or replace a baseline."""
    session.merge(
        BaselineRow(
            model_id=model_id,
            dataset_id=dataset_id,
            fingerprint=fingerprint,
            readings=measurement.to_json(),
            measured_at=utc_now(),
        )
    )
    session.flush()
