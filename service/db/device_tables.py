"""Tables of boards that measure: their agents, and what is ordered of them."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.db.columns import one_of
from service.db.tables import (
    DIGEST_CHARS,
    ID_CHARS,
    NAME_CHARS,
    JsonList,
    JsonObject,
    Moment,
    Tables,
)
from service.device_state import AgentState, OrderState


class DeviceAgentRow(Tables):
    """A process on a board that pulls orders; `device` is the name of its pool in `devices`.

    Of its token only the SHA-256 is kept.
    """

    __tablename__ = "device_agents"
    name: Mapped[str] = mapped_column(String(NAME_CHARS), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.name"), index=True)
    spec: Mapped[JsonObject]
    token_sha256: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    state: Mapped[AgentState] = mapped_column(one_of(AgentState))
    quota: Mapped[int]
    created_at: Mapped[Moment]
    seen_at: Mapped[Moment]


class TimingOrderRow(Tables):
    """A file to be timed beside the dense one on any board of a pool.

    `attempt` is the newest lease's secret, `tries` counts leases; `times` names the raw times in
    the artifact store. The wall time of the newest lease runs from `leased_at`.
    """

    __tablename__ = "timing_orders"
    id: Mapped[str] = mapped_column(String(ID_CHARS), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"), index=True)
    device: Mapped[str] = mapped_column(String(NAME_CHARS))
    candidate: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    baseline: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    probe: Mapped[str] = mapped_column(String(DIGEST_CHARS))
    compare: Mapped[str] = mapped_column(String(16))
    seed: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[float]
    max_seconds: Mapped[float]
    metrics: Mapped[JsonList]
    state: Mapped[OrderState] = mapped_column(one_of(OrderState))
    agent: Mapped[str] = mapped_column(String(NAME_CHARS), default="")
    attempt: Mapped[str] = mapped_column(String(NAME_CHARS), default="")
    tries: Mapped[int] = mapped_column(default=0)
    leased_at: Mapped[Moment | None]
    expires_at: Mapped[Moment | None]
    result: Mapped[JsonObject | None]
    times: Mapped[str] = mapped_column(String(DIGEST_CHARS), default="")
    reason: Mapped[str | None]
    created_at: Mapped[Moment]
    finished_at: Mapped[Moment | None]
    __table_args__ = (
        UniqueConstraint("job_id", "trial_id", "device", "candidate"),
        Index("ix_timing_orders_device_state", "device", "state"),
    )
