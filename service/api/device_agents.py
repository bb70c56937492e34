"""Boards: they register, pull orders, renew their leases and send what they timed.

An agent shows its own token beside the API key; of an order, also the secret of its lease. All
moments are the server's.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from compression.artifact import Digest
from search.device import DeviceSpec
from service.api.deps import PrincipalDep, ServicesDep, WaitDep, wait_until
from service.api.schemas.device_agents import (
    AgentRegister,
    AgentRegistered,
    DeviceAgentOut,
    OrderOut,
    RenewedOut,
    RenewIn,
    ResultIn,
    ResultOut,
)
from service.db import device_agents, devices, timing_orders
from service.db.columns import utc_now
from service.db.device_agents import PREFIX, StoredAgent
from service.db.errors import NotFound
from service.db.timing_orders import LEASE_S, StoredOrder
from service.errors import Fault, ResultImplausible, SpecInvalid
from service.job_spec import closest
from workers.board_readings import TimesInvalid, check_readings, check_wall, read_times
from workers.meters import RUNTIMES

MAX_RESULT_BYTES = 16 << 20
"""Largest body of a result."""

router = APIRouter(prefix="/devices", tags=["devices"])

TokenHeader = Annotated[str, Header(alias="X-Agent-Token", max_length=200)]
AgentHeader = Annotated[str, Header(alias="X-Agent-Name", max_length=200)]
AttemptHeader = Annotated[str, Header(alias="X-Order-Attempt", max_length=200)]
NewToken = Annotated[str | None, Header(alias="X-Agent-Token", max_length=200)]


def agent_out(agent: StoredAgent) -> DeviceAgentOut:
    """Return an agent as it is answered."""
    return DeviceAgentOut(
        name=agent.name,
        device=agent.device,
        state=agent.state,
        quota=agent.quota,
        hardware=dict(agent.spec.hardware),
        seen_at=agent.seen_at,
    )


@router.post("/agents", status_code=201)
def register_agent(
    body: AgentRegister, parts: ServicesDep, who: PrincipalDep, token: NewToken = None
) -> AgentRegistered:
    """Register a board's agent, or the same one again in a new life.

    What it held goes back into the queue. With its token it keeps it.
    """
    if body.runtime not in RUNTIMES:
        message = f"Unknown runtime {body.runtime!r}; {closest(body.runtime, RUNTIMES)}"
        raise SpecInvalid.of([Fault("/runtime", message)])
    spec = DeviceSpec(
        name=f"{PREFIX}{body.pool or body.name}",
        runtime=body.runtime,
        threads=body.threads,
        place="agent",
        hardware=tuple(sorted(body.hardware.items())),
    )
    with parts.database.write() as session:
        stored, text = device_agents.register(
            session, name=body.name, spec=spec, quota=body.quota, token=token
        )
        timing_orders.release(session, body.name, utc_now())
    return AgentRegistered(
        name=stored.name,
        device=stored.device,
        token=text,
        state=stored.state,
        quota=stored.quota,
        lease_s=LEASE_S,
    )


@router.post(
    "/agents/{name}:pull",
    response_model=OrderOut,
    responses={204: {"description": "Nothing is ordered of the agent's pool now"}},
)
def pull_order(
    name: str,
    parts: ServicesDep,
    who: PrincipalDep,
    response: Response,
    wait: WaitDep,
    token: TokenHeader,
) -> Any:
    """Lease the next order; `Prefer: wait=n` waits for one."""

    def is_there() -> bool:
        # Waiting is reading: writers of other requests are not held up.
        with parts.database.read() as session:
            agent = device_agents.known(session, name, token)
            return timing_orders.waiting(session, agent, utc_now())

    with parts.database.write() as session:
        agent = device_agents.verify(session, name, token)
        leased = timing_orders.lease(session, agent, utc_now())
    if leased is None and wait > 0 and wait_until(parts, response, wait, is_there, bool):
        with parts.database.write() as session:
            agent = device_agents.verify(session, name, token)
            leased = timing_orders.lease(session, agent, utc_now())
    if leased is None:
        applied = response.headers.get("preference-applied")
        return Response(status_code=204, headers={"Preference-Applied": applied} if applied else {})
    with parts.database.read() as session:
        device = devices.get(session, leased.order.device).spec
    return _order_out(leased, device)


def _order_out(leased: StoredOrder, device: DeviceSpec) -> OrderOut:
    order = leased.order
    return OrderOut(
        id=leased.id,
        attempt=leased.attempt,
        device={**device.to_json(), "hardware": {}},
        files={
            "candidate": order.candidate,
            "baseline": order.baseline,
            "probe": order.probe,
        },
        compare=order.compare,
        seed=order.seed,
        width=order.width,
        max_seconds=order.max_seconds,
        metrics=list(order.metrics),
        lease_s=LEASE_S,
    )


@router.get(
    "/orders/{order_id}/files/{part}",
    response_class=Response,
    responses={200: {"description": "The file", "content": {"application/octet-stream": {}}}},
)
def get_order_file(
    order_id: str,
    part: str,
    parts: ServicesDep,
    who: PrincipalDep,
    agent: AgentHeader,
    token: TokenHeader,
    attempt: AttemptHeader,
) -> Response:
    """Return a file of an order to the agent that holds it: no agent sees another file."""
    with parts.database.read() as session:
        device_agents.known(session, agent, token)
        found = timing_orders.live(session, order_id, agent, attempt).order
    files: dict[str, Digest] = {
        "candidate": found.candidate,
        "baseline": found.baseline,
        "probe": found.probe,
    }
    if part not in files:
        raise NotFound("file of an order", f"{part}; {closest(part, files)}")
    digest = files[part]
    size = parts.store.size_bytes(digest)
    headers = {"ETag": f'"{digest}"', "Content-Length": str(size)}
    return StreamingResponse(
        parts.store.stream(digest), headers=headers, media_type="application/octet-stream"
    )


@router.post("/orders/{order_id}:renew")
def renew_order(
    order_id: str,
    body: RenewIn,
    parts: ServicesDep,
    who: PrincipalDep,
    agent: AgentHeader,
    token: TokenHeader,
) -> RenewedOut:
    """Push the end of a lease."""
    with parts.database.write() as session:
        device_agents.verify(session, agent, token)
        timing_orders.renew(session, order_id, agent, body.attempt, utc_now())
    return RenewedOut(id=order_id, lease_s=LEASE_S)


@router.post("/orders/{order_id}:result")
def post_result(
    order_id: str,
    body: ResultIn,
    parts: ServicesDep,
    who: PrincipalDep,
    agent: AgentHeader,
    token: TokenHeader,
) -> ResultOut:
    """Take what came of an order, once; the same attempt may send it again and changes nothing."""
    if (body.times is None) == (body.failure is None):
        raise SpecInvalid.of([Fault("", "Either times or a failure, not both and not neither")])
    with parts.database.read() as session:
        device_agents.known(session, agent, token)
        earlier = timing_orders.answered(session, order_id, agent, body.attempt)
        if earlier is not None:
            return ResultOut(id=earlier.id, state=earlier.state)
        leased = timing_orders.live(session, order_id, agent, body.attempt)
    archive = None if body.times is None else _checked(body.times, body.readings, leased)
    times = None if archive is None else parts.store.put(archive)
    with parts.database.write() as session:
        device_agents.verify(session, agent, token)
        stored = timing_orders.finish(
            session,
            order_id,
            agent,
            body.attempt,
            times=times,
            readings=body.readings,
            failure=body.failure,
            now=utc_now(),
        )
    return ResultOut(id=stored.id, state=stored.state)


def _checked(text: str, readings: list[dict[str, Any]], leased: StoredOrder) -> bytes:
    """Return the archive of raw times after looking at it.

    Raises:
        ResultImplausible: It is none, or cannot have been measured since the lease began.
    """
    assert leased.leased_at is not None, f"order {leased.id} has an attempt and no lease"
    wall_s = (utc_now() - leased.leased_at).total_seconds()
    try:
        archive = base64.b64decode(text, validate=True)
        check_wall(read_times(archive), wall_s)
    except (binascii.Error, TimesInvalid) as error:
        raise ResultImplausible(str(error), [Fault("/times", str(error))]) from error
    try:
        check_readings(readings, leased.order.device)
    except TimesInvalid as error:
        raise ResultImplausible(str(error), [Fault("/readings", str(error))]) from error
    return archive


@router.post("/agents/{name}:drain")
def drain_agent(name: str, parts: ServicesDep, who: PrincipalDep) -> DeviceAgentOut:
    """Give an agent nothing more until it registers again; what it holds it may end."""
    with parts.database.write() as session:
        return agent_out(device_agents.drain(session, name))
