"""The published front of a job: revisions, of which the newest counts."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from search.measurement import Measured, Measurement
from search.trial import Trial
from service.db import artifacts, events
from service.db.columns import utc_now
from service.db.tables import FrontMemberRow, FrontRow
from service.job_state import JobOutcome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a front.

    Attributes:
        trial_id: The confirmed trial.
        plan_digest: Its plan's name.
        readings: What was measured of it.
        artifact_ids: Role (`checkpoint`, `onnx`, `coded`, `report`, ...) to `art_...` id.
    """

    trial_id: str
    plan_digest: str
    readings: Measurement
    artifact_ids: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A revision of a job's front.

    Attributes:
        outcome: `front_found` or `infeasible`; None while the search goes on.
        members: In a deterministic order.
        baseline: The dense model, measured alike.
        hypervolume: None where there is no reference point yet.
        nearest: Points that miss the bounds least, as JSON, where there is no member.
        binding: Which constraints bind and what relaxing each would buy, as JSON.
    """

    members: tuple[Member, ...]
    baseline: Measurement
    outcome: JobOutcome | None = None
    hypervolume: float | None = None
    nearest: Sequence[Mapping[str, Any]] = ()
    binding: Sequence[Mapping[str, Any]] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredFront:
    """A front as the database has it: revision 1, 2, ... of its job."""

    job_id: str
    revision: int
    published_at: datetime.datetime
    front: Front


def publish(session: Session, job_id: str, front: Front) -> int:
    """Store a new revision, with an event `front.published`; return its number.

    Raises:
        NotFound: There is no such job.
    """
    # The event locks the job's row, so two publishers cannot count to the same revision.
    newest = select(func.max(FrontRow.revision)).where(FrontRow.job_id == job_id)
    payload = {
        "members": [member.trial_id for member in front.members],
        "hypervolume": front.hypervolume,
        "outcome": front.outcome,
    }
    events.append(session, job_id, "front.published", payload)
    revision = (session.scalar(newest) or 0) + 1
    session.add(
        FrontRow(
            job_id=job_id,
            revision=revision,
            outcome=front.outcome,
            hypervolume=front.hypervolume,
            baseline=front.baseline.to_json(),
            nearest=[dict(point) for point in front.nearest],
            binding=[dict(constraint) for constraint in front.binding],
            published_at=utc_now(),
        )
    )
    session.flush()
    for position, member in enumerate(front.members):
        session.add(
            FrontMemberRow(
                job_id=job_id,
                revision=revision,
                position=position,
                trial_id=member.trial_id,
                plan_digest=member.plan_digest,
                readings=member.readings.to_json(),
                artifacts=dict(member.artifact_ids),
            )
        )
    session.flush()
    return revision


def publish_trials(
    session: Session,
    job_id: str,
    *,
    outcome: JobOutcome | None,
    baseline: Measurement,
    front: Sequence[Trial] = (),
    hypervolume: float | None = None,
    nearest: Sequence[Trial] = (),
    binding: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Publish measured trials as a front, their artifacts included; see `publish` and `Front`.

    Raises:
        NotFound: There is no such job.
    """
    artifact_ids = artifacts.ids(session, [trial.artifacts for trial in front])
    members = tuple(
        Member(
            trial_id=trial.id,
            plan_digest=trial.plan.digest,
            readings=_measurement(trial),
            artifact_ids=roles,
        )
        for trial, roles in zip(front, artifact_ids, strict=True)
    )
    points = [
        {
            "trial_id": trial.id,
            "plan_digest": trial.plan.digest,
            "fidelity": trial.fidelity.value,
            "readings": _measurement(trial).to_json(),
        }
        for trial in nearest
    ]
    return publish(
        session,
        job_id,
        Front(
            members=members,
            baseline=baseline,
            outcome=outcome,
            hypervolume=hypervolume,
            nearest=points,
            binding=binding,
        ),
    )


def latest(session: Session, job_id: str) -> StoredFront | None:
    """Return the newest revision; None before the first."""
    row = session.scalars(
        select(FrontRow)
        .where(FrontRow.job_id == job_id)
        .order_by(FrontRow.revision.desc())
        .limit(1)
    ).first()
    if row is None:
        return None
    members = session.scalars(
        select(FrontMemberRow)
        .where(FrontMemberRow.job_id == job_id, FrontMemberRow.revision == row.revision)
        .order_by(FrontMemberRow.position)
    )
    return StoredFront(
        job_id=job_id,
        revision=row.revision,
        published_at=row.published_at,
        front=Front(
            members=tuple(
                Member(
                    trial_id=m.trial_id,
                    plan_digest=m.plan_digest,
                    readings=Measurement.from_json(list(m.readings)),
                    artifact_ids=m.artifacts,
                )
                for m in members
            ),
            baseline=Measurement.from_json(list(row.baseline)),
            outcome=row.outcome,
            hypervolume=row.hypervolume,
            nearest=row.nearest,
            binding=row.binding,
        ),
    )


def history(session: Session, job_id: str) -> Sequence[tuple[int, float | None, datetime.datetime]]:
    """Return (revision, hypervolume, moment) of all revisions, oldest first."""
    rows = session.execute(
        select(FrontRow.revision, FrontRow.hypervolume, FrontRow.published_at)
        .where(FrontRow.job_id == job_id)
        .order_by(FrontRow.revision)
    )
    return [(revision, volume, at) for revision, volume, at in rows]


def _measurement(trial: Trial) -> Measurement:
    if not isinstance(trial.outcome, Measured):
        raise ValueError(f"Trial {trial.id} is {trial.state}; only measured ones are published")
    return trial.outcome.measurement
