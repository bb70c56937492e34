"""Timing orders: asked for by jobs, leased to boards, answered once.

Every moment is the server's. A lease that runs out puts its order back into the queue, but as long
as nobody else has taken it, its late result is still the newest and is taken.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from compression.artifact import Digest
from service.db.columns import new_id
from service.db.device_agents import StoredAgent
from service.db.device_tables import TimingOrderRow
from service.db.errors import NotFound
from service.db.tables import JobRow
from service.device_state import AgentState, OrderState
from service.errors import AttemptStale, IllegalState
from workers.remote_timing import Compare, TimingOrder

LEASE_S = 30.0
"""After so long without a sign of an agent, its orders are another's."""

MAX_TRIES = 3
"""Leases of one order; one that outlives three has something that ends agents."""

LONGEST_S = 1800.0
"""Longest that one lease is renewed, beside the timing itself."""

OPEN = (OrderState.QUEUED, OrderState.LEASED)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredOrder:
    """An order as the database has it.

    Attributes:
        id: `tor_...`.
        job_id: Of whom.
        order: What is ordered.
        state: Where it stands.
        agent: Who has or had its newest lease.
        attempt: Secret of that lease; empty before the first.
        tries: Leases so far.
        leased_at: When that lease began.
        reason: Why nothing came of it.
    """

    id: str
    job_id: str
    order: TimingOrder
    state: OrderState
    agent: str
    attempt: str
    tries: int
    leased_at: datetime.datetime | None
    reason: str | None


def ask(session: Session, job_id: str, order: TimingOrder, now: datetime.datetime) -> str:
    """Return the id of the order, stored now unless it is there; a failed one is queued again."""
    row = _find(session, job_id, order)
    if row is None:
        fields: dict[str, Any] = {**dataclasses.asdict(order), "metrics": list(order.metrics)}
        row = TimingOrderRow(
            id=new_id("tor"),
            job_id=job_id,
            state=OrderState.QUEUED,
            agent="",
            attempt="",
            tries=0,
            times="",
            created_at=now,
            **fields,
        )
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            row = _find(session, job_id, order)
            if row is None:
                raise
    elif row.state is OrderState.FAILED:
        row.state, row.tries, row.attempt, row.reason = OrderState.QUEUED, 0, "", None
        row.created_at, row.finished_at, row.result = now, None, None
        session.flush()
    return row.id


def waiting(session: Session, agent: StoredAgent, now: datetime.datetime) -> bool:
    """Whether a pull of the agent would find something; writes nothing."""
    query = select(TimingOrderRow.id).where(
        TimingOrderRow.device == agent.device,
        (TimingOrderRow.state == OrderState.QUEUED)
        | ((TimingOrderRow.state == OrderState.LEASED) & (TimingOrderRow.expires_at <= now)),
    )
    return session.scalars(query.limit(1)).first() is not None


def lease(
    session: Session, agent: StoredAgent, now: datetime.datetime, lease_s: float = LEASE_S
) -> StoredOrder | None:
    """Lease the next order of the agent's pool to it; None where there is none for it now.

    Jobs take turns: the one that was served longest ago comes first, then the oldest.

    Raises:
        IllegalState: The agent is draining.
    """
    if agent.state is AgentState.DRAINING:
        raise IllegalState(
            f"Agent {agent.name!r} is draining and gets nothing more",
            extra={"state": agent.state},
        )
    sweep(session, agent.device, now)
    held = session.scalar(
        select(func.count())
        .select_from(TimingOrderRow)
        .where(TimingOrderRow.agent == agent.name, TimingOrderRow.state == OrderState.LEASED)
    )
    if (held or 0) >= agent.quota:
        return None
    served: dict[str, datetime.datetime] = {
        job: at
        for job, at in session.execute(
            select(TimingOrderRow.job_id, func.max(TimingOrderRow.leased_at))
            .where(TimingOrderRow.device == agent.device)
            .group_by(TimingOrderRow.job_id)
        )
        if at is not None
    }
    queued = session.execute(
        select(TimingOrderRow, JobRow.created_at)
        .join(JobRow, JobRow.id == TimingOrderRow.job_id)
        .where(
            TimingOrderRow.device == agent.device,
            TimingOrderRow.state == OrderState.QUEUED,
        )
        .with_for_update(of=TimingOrderRow, skip_locked=True)
    ).all()
    if not queued:
        return None
    never = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    row, _ = min(
        queued,
        key=lambda found: (
            served.get(found[0].job_id, never),
            found[1],
            found[0].created_at,
            found[0].id,
        ),
    )
    row.state, row.agent, row.attempt = OrderState.LEASED, agent.name, new_id("lea")
    row.tries, row.leased_at = row.tries + 1, now
    row.expires_at = now + datetime.timedelta(seconds=lease_s)
    session.flush()
    return _stored(row)


def renew(
    session: Session,
    order_id: str,
    agent: str,
    attempt: str,
    now: datetime.datetime,
    lease_s: float = LEASE_S,
) -> StoredOrder:
    """Push the end of a lease; one that ran out is held again where nobody has taken the order.

    Raises:
        AttemptStale: Another attempt is newer, the order is answered, or it takes far too long.
    """
    row = _live(session, order_id, agent, attempt)
    assert row.leased_at is not None
    longest_s = row.max_seconds + LONGEST_S
    if (now - row.leased_at).total_seconds() > longest_s:
        raise AttemptStale(f"Order {order_id} has been leased for more than {longest_s:.0f} s")
    row.state, row.expires_at = OrderState.LEASED, now + datetime.timedelta(seconds=lease_s)
    session.flush()
    return _stored(row)


def live(session: Session, order_id: str, agent: str, attempt: str) -> StoredOrder:
    """Return the order whose newest attempt this is and that is not answered yet.

    Raises:
        NotFound: There is no such order.
        AttemptStale: Another attempt is newer, or the order is answered.
    """
    return _stored(_live(session, order_id, agent, attempt))


def answered(session: Session, order_id: str, agent: str, attempt: str) -> StoredOrder | None:
    """Return the order if this attempt answered it, so that an answer may be sent twice."""
    row = session.get(TimingOrderRow, order_id)
    if row is None or (row.agent, row.attempt) != (agent, attempt) or row.state in OPEN:
        return None
    return _stored(row)


def finish(
    session: Session,
    order_id: str,
    agent: str,
    attempt: str,
    *,
    times: Digest | None,
    readings: Sequence[Mapping[str, Any]],
    failure: str | None,
    now: datetime.datetime,
) -> StoredOrder:
    """Store what came of an order, once.

    Args:
        session: Of a writing transaction.
        order_id: Which.
        agent: Who answers.
        attempt: Secret of its lease.
        times: Raw times in the store; None with a failure.
        readings: What the board read, as JSON.
        failure: Why nothing was timed; None with times.
        now: The present moment.

    Raises:
        NotFound: There is no such order.
        AttemptStale: Another attempt is newer, or the order is answered.
    """
    row = _live(session, order_id, agent, attempt)
    assert row.leased_at is not None
    seconds = (now - row.leased_at).total_seconds()
    row.state = OrderState.DONE if failure is None else OrderState.FAILED
    row.result = {"readings": [dict(item) for item in readings], "seconds": seconds}
    row.times, row.reason, row.finished_at = times or "", failure, now
    session.flush()
    return _stored(row)


def sweep(session: Session, device: str, now: datetime.datetime) -> None:
    """Put orders of a pool whose lease ran out back into the queue, or give them up."""
    rows = session.scalars(
        select(TimingOrderRow)
        .where(
            TimingOrderRow.device == device,
            TimingOrderRow.state == OrderState.LEASED,
            TimingOrderRow.expires_at <= now,
        )
        .with_for_update(skip_locked=True)
    )
    for row in rows:
        _let_go(row, f"agent {row.agent!r} fell silent", now)
    session.flush()


def release(session: Session, agent: str, now: datetime.datetime) -> None:
    """Put back what an agent holds: it has begun a new life and knows nothing of it."""
    rows = session.scalars(
        select(TimingOrderRow)
        .where(TimingOrderRow.agent == agent, TimingOrderRow.state == OrderState.LEASED)
        .with_for_update()
    )
    for row in rows:
        _let_go(row, f"agent {agent!r} began anew", now)
        row.attempt = ""
    session.flush()


def withdraw(session: Session, job_id: str, now: datetime.datetime) -> None:
    """End what a job still has open: nobody waits for it any more."""
    rows = session.scalars(
        select(TimingOrderRow).where(
            TimingOrderRow.job_id == job_id, TimingOrderRow.state.in_(OPEN)
        )
    )
    for row in rows:
        row.state, row.finished_at = OrderState.FAILED, now
        row.attempt, row.reason = "", "its job has ended"
    session.flush()


def _let_go(row: TimingOrderRow, reason: str, now: datetime.datetime) -> None:
    row.state = OrderState.QUEUED
    if row.tries >= MAX_TRIES:
        row.state, row.finished_at = OrderState.FAILED, now
        row.reason = f"{reason}, the last of {row.tries} attempts"


def _find(session: Session, job_id: str, order: TimingOrder) -> TimingOrderRow | None:
    return session.scalars(
        select(TimingOrderRow)
        .where(
            TimingOrderRow.job_id == job_id,
            TimingOrderRow.trial_id == order.trial_id,
            TimingOrderRow.device == order.device,
            TimingOrderRow.candidate == order.candidate,
        )
        .with_for_update()
    ).first()


def _live(session: Session, order_id: str, agent: str, attempt: str) -> TimingOrderRow:
    row = session.get(TimingOrderRow, order_id, with_for_update=True)
    if row is None:
        raise NotFound("timing order", order_id)
    if not attempt or (row.agent, row.attempt) != (agent, attempt):
        raise AttemptStale(f"Order {order_id} has a newer attempt, or its job has ended")
    if row.state not in OPEN:
        raise AttemptStale(f"Order {order_id} is {row.state}")
    return row


def _stored(row: TimingOrderRow) -> StoredOrder:
    compare: Compare = "decisions" if row.compare == "decisions" else "values"
    return StoredOrder(
        id=row.id,
        job_id=row.job_id,
        order=TimingOrder(
            trial_id=row.trial_id,
            device=row.device,
            candidate=Digest(row.candidate),
            baseline=Digest(row.baseline),
            probe=Digest(row.probe),
            compare=compare,
            seed=row.seed,
            width=row.width,
            max_seconds=row.max_seconds,
            metrics=tuple(row.metrics),
        ),
        state=row.state,
        agent=row.agent,
        attempt=row.attempt,
        tries=row.tries,
        leased_at=row.leased_at,
        reason=row.reason,
    )
