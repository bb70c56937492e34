"""The timing orders of one job as its conductor sees them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import func, select

from compression.artifact import Digest
from service.db import timing_orders
from service.db.columns import utc_now
from service.db.device_tables import DeviceAgentRow, TimingOrderRow
from service.db.session import Database
from service.db.timing_orders import OPEN
from service.device_state import OrderState
from workers.remote_timing import TimingAnswer, TimingOrder

PATIENCE_S = 600.0
"""An order that no agent has been there for, for so long, fails."""


class SqlTimingQueue:
    """Implements `workers.remote_timing.TimingQueue` for one job: a transaction per call."""

    def __init__(
        self,
        database: Database,
        job_id: str,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        """Open the queue.

        Args:
            database: Where the job is.
            job_id: Whose orders.
            clock: The present moment, aware.
        """
        self._database = database
        self._job_id = job_id
        self._clock = clock

    def ask(self, order: TimingOrder) -> str:
        """See `TimingQueue`."""
        with self._database.write() as session:
            return timing_orders.ask(session, self._job_id, order, self._clock())

    def answers(self, ids: Sequence[str]) -> Mapping[str, TimingAnswer]:
        """See `TimingQueue`. Also gives up what no agent is there for."""
        now = self._clock()
        with self._database.read() as session:
            rows = list(
                session.scalars(select(TimingOrderRow).where(TimingOrderRow.id.in_(list(ids))))
            )
            newest = select(DeviceAgentRow.device, func.max(DeviceAgentRow.seen_at))
            found = session.execute(newest.group_by(DeviceAgentRow.device)).all()
            seen: dict[str, datetime.datetime] = {device: at for device, at in found}  # noqa: C416
        late = [row for row in rows if _is_late(row, seen.get(row.device), now)]
        if late:
            with self._database.write() as session:
                for device in {row.device for row in late}:
                    timing_orders.sweep(session, device, now)
                for stale in late:
                    row = session.get(TimingOrderRow, stale.id, with_for_update=True)
                    if row is not None and _is_late(row, seen.get(row.device), now):
                        row.state, row.finished_at = OrderState.FAILED, now
                        row.reason = f"no agent asked for work for {PATIENCE_S:.0f} s"
        return {row.id: _answer(row) for row in rows if row.state not in OPEN}


def _is_late(
    row: TimingOrderRow, seen_at: datetime.datetime | None, now: datetime.datetime
) -> bool:
    if row.state is OrderState.LEASED:
        return row.expires_at is not None and row.expires_at <= now
    if row.state is not OrderState.QUEUED:
        return False
    since = row.created_at if seen_at is None else max(seen_at, row.created_at)
    return (now - since).total_seconds() > PATIENCE_S


def _answer(row: TimingOrderRow) -> TimingAnswer:
    result = row.result or {}
    if row.state is OrderState.FAILED:
        seconds = float(result.get("seconds", 0.0))
        return TimingAnswer(failure=row.reason or "no reason was given", seconds=seconds)
    return TimingAnswer(
        times=Digest(row.times), readings=result["readings"], seconds=float(result["seconds"])
    )
