"""Who drives a job: one owner at a time, by a lease with a growing epoch.

A conductor claims a job, renews its lease while it works, and fences every write by (owner,
epoch) in the same transaction. When the lease runs out another conductor may claim the job with
the next epoch; whatever the first one still writes then raises `LeaseLost`. Expired but unclaimed
leases stay good: nobody else writes.

Moments come from the process's clock. A skew between machines can end a lease early or late; the
epoch, not the clock, keeps two owners from both writing.
"""

from __future__ import annotations

import dataclasses
import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from service.db.columns import utc_now
from service.db.tables import JobRow, LeaseRow
from service.job_state import ACTIVE
from workers.errors import LeaseLost

LEASE_S = 30.0
"""How long a silent conductor is waited for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to drive a job.

    Attributes:
        job_id: Which job.
        owner: Who holds it; unique to a process, for example host, pid and a random part.
        epoch: 1, 2, ... within the job; larger is newer.
        expires_at: Moment after which others may claim the job.
    """

    job_id: str
    owner: str
    epoch: int
    expires_at: datetime.datetime


def claim_job(
    session: Session,
    owner: str,
    lease_s: float = LEASE_S,
    *,
    now: datetime.datetime | None = None,
) -> Claim | None:
    """Take the oldest job that has work left and no living owner; None when there is none."""
    now = now or utc_now()
    row = session.scalars(
        select(LeaseRow)
        .join(JobRow, JobRow.id == LeaseRow.job_id)
        .where(JobRow.state.in_(ACTIVE))
        .where(or_(LeaseRow.owner.is_(None), LeaseRow.expires_at <= now))
        .order_by(JobRow.created_at, JobRow.id)
        .limit(1)
        .with_for_update(of=LeaseRow, skip_locked=True)
    ).first()
    if row is None:
        return None
    expires_at = now + datetime.timedelta(seconds=lease_s)
    row.owner, row.epoch, row.expires_at = owner, row.epoch + 1, expires_at
    session.flush()
    return Claim(job_id=row.job_id, owner=owner, epoch=row.epoch, expires_at=expires_at)


def renew(
    session: Session,
    job_id: str,
    owner: str,
    epoch: int,
    *,
    lease_s: float = LEASE_S,
    now: datetime.datetime | None = None,
) -> Claim:
    """Prove that the lease is held, push its end, and keep others out until the commit.

    Called first in every writing transaction of a job's owner: this is the fence.

    Raises:
        LeaseLost: Another owner holds the job, or it was released.
    """
    expires_at = (now or utc_now()) + datetime.timedelta(seconds=lease_s)
    held = session.scalars(
        update(LeaseRow)
        .where(LeaseRow.job_id == job_id, LeaseRow.owner == owner, LeaseRow.epoch == epoch)
        .values(expires_at=expires_at)
        .returning(LeaseRow.epoch)
        .execution_options(synchronize_session=False)
    ).first()
    if held is None:
        raise LeaseLost(f"Job {job_id} is no longer held by {owner!r} at epoch {epoch}")
    return Claim(job_id=job_id, owner=owner, epoch=epoch, expires_at=expires_at)


def release(session: Session, claim: Claim) -> bool:
    """Let go of a job; return whether it was still held."""
    let_go = session.scalars(
        update(LeaseRow)
        .where(
            LeaseRow.job_id == claim.job_id,
            LeaseRow.owner == claim.owner,
            LeaseRow.epoch == claim.epoch,
        )
        .values(owner=None, expires_at=None)
        .returning(LeaseRow.job_id)
        .execution_options(synchronize_session=False)
    ).first()
    return let_go is not None


def holder(session: Session, job_id: str) -> Claim | None:
    """Return who holds a job, also when the lease has run out; None when nobody does."""
    row = session.get(LeaseRow, job_id, populate_existing=True)
    if row is None or row.owner is None or row.expires_at is None:
        return None
    return Claim(job_id=job_id, owner=row.owner, epoch=row.epoch, expires_at=row.expires_at)
