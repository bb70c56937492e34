"""The shapes of what agents of boards send and get."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from service.api.schemas.strict import Answer, Request
from service.device_state import AgentState, OrderState

MAX_TIMES_CHARS = 12 << 20
"""Of raw times as base64; a comparison of the longest kind has some 100 kB."""

DeviceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Name of an agent or of a pool: it stands in paths and, after `board/`, in constraints."""

Fact = Annotated[str, StringConstraints(max_length=500)]
Attempt = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class AgentRegister(Request):
    """A board that offers to time.

    Attributes:
        name: Of the agent; a second one of this name is refused while the first one lives.
        pool: Boards that share orders; `board/<pool>` is the device that constraints name. The
            agent's own name when absent.
        runtime: Name of a runtime, for example `onnxruntime`.
        threads: Threads of one inference.
        quota: Orders that it takes at once.
        hardware: What the board says of itself: CPU model, flags, versions.
    """

    name: DeviceName
    pool: DeviceName | None = None
    runtime: str = Field(max_length=100)
    threads: int = Field(default=1, ge=1, le=1024)
    quota: int = Field(default=1, ge=1, le=64)
    hardware: dict[Fact, Fact] = Field(default_factory=dict, max_length=64)


class AgentRegistered(Answer):
    """An agent's secret, shown once: it goes into the header `X-Agent-Token`."""

    name: str
    device: str
    token: str
    state: AgentState
    quota: int
    lease_s: float


class OrderOut(Answer):
    """A file to be timed beside the dense one.

    Attributes:
        id: The order's.
        attempt: Secret of this lease; with the result it says that the lease is meant.
        device: Name, runtime, threads and batch.
        files: `candidate`, `baseline` and `probe`, each with its SHA-256.
        compare: Whether outputs must agree in `values` or in `decisions`.
        seed: Of the inputs and of the order of calls.
        width: Relative width of the ratio's interval that is wanted.
        max_seconds: Longest timing.
        metrics: What is to be read beside latency and throughput.
        lease_s: Seconds until the lease ends; renew it before.
    """

    id: str
    attempt: str
    device: dict[str, Any]
    files: dict[str, str]
    compare: str
    seed: int
    width: float
    max_seconds: float
    metrics: list[str]
    lease_s: float


class RenewIn(Request):
    """Which lease is to be renewed."""

    attempt: Attempt


class RenewedOut(Answer):
    """Seconds until the lease ends."""

    id: str
    lease_s: float


class ResultIn(Request):
    """What came of an order: times, or why there are none.

    Attributes:
        attempt: Secret of the lease.
        times: Raw times, an `.npz` archive as base64.
        readings: What the board made of them, as readings.
        failure: Why nothing was timed.
    """

    attempt: Attempt
    times: Annotated[str, StringConstraints(max_length=MAX_TIMES_CHARS)] | None = None
    readings: list[dict[str, Any]] = Field(default_factory=list, max_length=64)
    failure: Annotated[str, StringConstraints(min_length=1, max_length=4000)] | None = None


class ResultOut(Answer):
    """An order as it stands after its result."""

    id: str
    state: OrderState


class DeviceAgentOut(Answer):
    """An agent of a board; `seen_at` is by the server's clock."""

    name: str
    device: str
    state: AgentState
    quota: int
    hardware: dict[str, str]
    seen_at: datetime.datetime
