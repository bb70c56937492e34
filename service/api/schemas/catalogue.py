"""The shapes of what a server offers: metrics, devices, methods, agents, itself."""

from __future__ import annotations

import datetime
from typing import Any

from pydantic import Field

from service.api.schemas.device_agents import DeviceAgentOut
from service.api.schemas.strict import Answer


class MetricOut(Answer):
    """A quantity that is measured.

    Attributes:
        name: Used in objectives, constraints and readings.
        unit: Physical unit, `1` for a share.
        direction: Which way is better.
        timed: Whether it is true for one device only.
        exact_before_trial: Whether it is arithmetic, known of any plan without a trial.
        summary: One sentence.
    """

    name: str
    unit: str
    direction: str
    timed: bool
    exact_before_trial: bool
    summary: str


class DeviceOut(Answer):
    """A named place where time is measured.

    Attributes:
        name: As constraints name it.
        runtime: What runs the deployed file.
        threads: Of one inference.
        batch: Inputs of one inference.
        place: `local` (this server), `agent` (a pool of boards) or `virtual` (nothing measured).
        hardware: What it says of itself; of a pool, what its boards have in common.
        fingerprint: Of all that; None until it was stored.
        seen_at: When it was stored last.
        agents: Of a pool: who pulls its orders.
    """

    name: str
    runtime: str
    threads: int
    batch: int
    place: str
    hardware: dict[str, str]
    fingerprint: str | None
    seen_at: datetime.datetime | None
    agents: list[DeviceAgentOut] = Field(default_factory=list)


class NamedOut(Answer):
    """A name and what it means."""

    name: str
    summary: str


class MethodsOut(Answer):
    """What a job may allow, the channel criteria, and the limits with their defaults."""

    primitives: list[NamedOut]
    selectors: list[NamedOut]
    defaults: dict[str, Any]
    limits: dict[str, Any]


class AgentOut(Answer):
    """A strategy that proposes plans; `options` maps each option to its default."""

    name: str
    summary: str
    default: bool
    options: dict[str, Any]


class AgentsOut(Answer):
    """All agents; `auto` names the default one."""

    data: list[AgentOut]
    auto: str


class SystemOut(Answer):
    """What this server is, takes and has switched on."""

    name: str
    version: str
    versions: dict[str, str]
    limits: dict[str, float]
    features: dict[str, bool]
    architectures: list[str]


class HealthOut(Answer):
    """Whether the process lives (`/healthz`), or can serve (`/readyz`)."""

    status: str
    checks: dict[str, str] = Field(default_factory=dict)


class EventOut(Answer):
    """An entry of a job's log; `seq` is 1, 2, 3, ... without gaps."""

    seq: int
    kind: str
    payload: dict[str, Any]
    at: datetime.datetime


class EventsOut(Answer):
    """Events after a number, oldest first; ask again with `after=last_seq`."""

    data: list[EventOut]
    has_more: bool
    last_seq: int


class ArtifactOut(Answer):
    """A stored file; its bytes are at `links.content`."""

    id: str
    role: str
    sha256: str
    size_bytes: int
    media_type: str
    file_name: str
    created_at: datetime.datetime
    links: dict[str, str]
