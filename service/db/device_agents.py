"""Agents of boards: who may pull orders, and of which pool."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.device import DeviceSpec
from service.db import devices
from service.db.columns import utc_now
from service.db.device_tables import DeviceAgentRow
from service.db.errors import NotFound
from service.device_state import AgentState
from service.errors import AgentRefused, NameTaken, PoolMismatch

PREFIX = "board/"
"""How the names of pools begin where constraints name them."""

SILENT_S = 120.0
"""After so long without a sign of life, an agent's name may be taken over without its token."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredAgent:
    """An agent without its secret.

    Attributes:
        name: Its own.
        device: Its pool as constraints name it, `board/...`.
        spec: The pool as this board is: runtime, threads, hardware.
        state: Whether it gets orders.
        quota: Orders that it may hold at once.
        created_at: First registration.
        seen_at: Last sign of life, by the server's clock.
    """

    name: str
    device: str
    spec: DeviceSpec
    state: AgentState
    quota: int
    created_at: datetime.datetime
    seen_at: datetime.datetime


def register(
    session: Session,
    *,
    name: str,
    spec: DeviceSpec,
    quota: int = 1,
    token: str | None = None,
    now: datetime.datetime | None = None,
) -> tuple[StoredAgent, str]:
    """Store an agent, or renew the one of this name; return it with its token.

    The pool becomes a device with what all its boards have in common.

    Args:
        session: Of a writing transaction.
        name: The agent's.
        spec: The pool as this board is; its name begins with `board/`.
        quota: Orders that it may hold at once.
        token: What an earlier registration of this agent got, where it still has it.
        now: The present moment.

    Raises:
        PoolMismatch: The pool's boards have another runtime, thread count or CPU.
        NameTaken: An agent of this name lives, and the token is not its own.
    """
    now = now or utc_now()
    row = session.get(DeviceAgentRow, name, with_for_update=True)
    if row is not None and not _is(row, token):
        silent_s = (now - row.seen_at).total_seconds()
        if silent_s < SILENT_S:
            raise NameTaken(
                f"Agent {name!r} of {row.device} was seen {silent_s:.0f} s ago and the token is "
                f"not its own; take another name, or wait until it is silent for {SILENT_S:.0f} s"
            )
        token = None
    others = [a for a in everything(session, spec.name) if a.name != name]
    for other in others:
        _refuse_mixture(spec, name, other)
    shared = set(spec.hardware).intersection(*(set(other.spec.hardware) for other in others))
    devices.put(session, dataclasses.replace(spec, hardware=tuple(sorted(shared))))
    if row is None:
        row = DeviceAgentRow(name=name, created_at=now)
        session.add(row)
    token = token or secrets.token_urlsafe(32)
    row.device, row.spec, row.quota = spec.name, spec.to_json(), quota
    row.token_sha256, row.state, row.seen_at = _hash(token), AgentState.ACTIVE, now
    session.flush()
    return _stored(row), token


def verify(
    session: Session, name: str, token: str, *, now: datetime.datetime | None = None
) -> StoredAgent:
    """Return the agent that a request comes from and note the sign of life.

    Raises:
        AgentRefused: There is none of this name, or the token is not its own.
    """
    row = session.get(DeviceAgentRow, name)
    if row is None or not _is(row, token):
        raise AgentRefused(f"No agent {name!r} has this token; register it again")
    row.seen_at = now or utc_now()
    session.flush()
    return _stored(row)


def known(session: Session, name: str, token: str) -> StoredAgent:
    """Return the agent that a request comes from; writes nothing.

    Raises:
        AgentRefused: As `verify`.
    """
    row = session.get(DeviceAgentRow, name)
    if row is None or not _is(row, token):
        raise AgentRefused(f"No agent {name!r} has this token; register it again")
    return _stored(row)


def drain(session: Session, name: str) -> StoredAgent:
    """Give an agent nothing more until it registers again.

    Raises:
        NotFound: There is none of this name.
    """
    row = session.get(DeviceAgentRow, name, with_for_update=True)
    if row is None:
        raise NotFound("device agent", name)
    row.state = AgentState.DRAINING
    session.flush()
    return _stored(row)


def everything(session: Session, device: str | None = None) -> Sequence[StoredAgent]:
    """Return all agents by name, or those of one pool."""
    query = select(DeviceAgentRow).order_by(DeviceAgentRow.name)
    if device is not None:
        query = query.where(DeviceAgentRow.device == device)
    return [_stored(row) for row in session.scalars(query)]


def _refuse_mixture(spec: DeviceSpec, name: str, other: StoredAgent) -> None:
    """Readings of one pool are compared with each other, so its boards must be alike."""
    differ = [
        f"{what} {ours!r}, and {other.name!r} has {theirs!r}"
        for what, ours, theirs in (
            ("the runtime", spec.runtime, other.spec.runtime),
            ("threads", spec.threads, other.spec.threads),
            ("the CPU", _cpu(spec), _cpu(other.spec)),
        )
        if ours != theirs
    ]
    if differ:
        raise PoolMismatch(
            f"Boards of one pool must be alike, since their times are compared: in {spec.name} "
            f"{name!r} has {'; '.join(differ)}. Name another pool"
        )


def _cpu(spec: DeviceSpec) -> str:
    return dict(spec.hardware).get("cpu", "")


def _is(row: DeviceAgentRow, token: str | None) -> bool:
    return token is not None and hmac.compare_digest(row.token_sha256, _hash(token))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _stored(row: DeviceAgentRow) -> StoredAgent:
    return StoredAgent(
        name=row.name,
        device=row.device,
        spec=DeviceSpec.from_json(row.spec),
        state=row.state,
        quota=row.quota,
        created_at=row.created_at,
        seen_at=row.seen_at,
    )
