"""The event log of a job: as JSON pages, or live as server-sent events.

A stream holds no database session: it asks the table every `event_poll_s` in a thread, with a
transaction of its own. Its place is given back by the response itself, which is told when the
client goes, and not by a generator's `finally`, which may run much later.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.deps import PrincipalDep, Services, ServicesDep
from service.api.schemas.catalogue import EventOut, EventsOut
from service.db import events, jobs
from service.db.events import StoredEvent
from service.errors import Fault, SpecInvalid, TooManyStreams
from service.job_state import ENDED

router = APIRouter(prefix="/jobs", tags=["events"])

MEDIA_TYPE = "text/event-stream"
BATCH = 200
PING = b": ping\n\n"
RETRY_MS = 2000

_ENDING = frozenset(f"job.{state.lower()}" for state in ENDED)


def event_out(event: StoredEvent) -> EventOut:
    """Return an event as it is answered."""
    return EventOut(seq=event.seq, kind=event.kind, payload=dict(event.payload), at=event.at)


def encode(event: StoredEvent) -> bytes:
    """Return an event as one message of the stream; JSON has no raw line breaks."""
    data = event_out(event).model_dump_json()
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def read(parts: Services, job_id: str, after: int) -> tuple[list[StoredEvent], bool]:
    """Return the next events, and whether the job had ended when they were read."""
    with parts.database.read() as session:
        ended = jobs.get(session, job_id).state in ENDED
        return list(events.after(session, job_id, after, limit=BATCH)), ended


async def messages(parts: Services, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Yield the stream of a job: events, pings in silence, and the end after the last event.

    Args:
        parts: The process's parts.
        job_id: An existing job.
        after: Number of the last event the client has.
    """
    settings = parts.settings
    yield f"retry: {RETRY_MS}\n\n".encode()
    silent_since = time.monotonic()
    while True:
        found, ended = await to_thread.run_sync(read, parts, job_id, after)
        for event in found:
            after = event.seq
            yield encode(event)
            if event.kind in _ENDING:
                return
        if found:
            silent_since = time.monotonic()
            if len(found) == BATCH:
                continue
        elif ended:
            return
        if time.monotonic() - silent_since >= settings.event_ping_s:
            silent_since = time.monotonic()
            yield PING
        await anyio.sleep(min(settings.event_poll_s, settings.event_ping_s))


class EventStream(StreamingResponse):
    """A stream whose place and generator are given back when the response ends, however it does."""

    def __init__(self, parts: Services, job_id: str, after: int) -> None:
        self._parts = parts
        self._messages = messages(parts, job_id, after)
        super().__init__(
            self._messages,
            media_type=MEDIA_TYPE,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        try:
            async with aclosing(self._messages):  # type: ignore[type-var]
                await super().__call__(scope, receive, send)
        finally:
            self._parts.streams.release()


def _position(after: int | None, last_event_id: str | None) -> int:
    """Return after which event to go on; the header, which browsers renew, wins."""
    if last_event_id is None or last_event_id == "":
        return after or 0
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 19):
        message = f"Last-Event-ID is {last_event_id[:80]!r}; it must be the number of an event"
        raise SpecInvalid.of([Fault("#header/Last-Event-ID", message)])
    return int(last_event_id)


_DOCUMENTED: Mapping[int | str, dict[str, Any]] = {
    200: {"model": EventsOut, "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
    204: {"description": "The job has ended and the client has its last event"},
}


@router.get("/{job_id}/events", responses=dict(_DOCUMENTED), response_model=None)
def list_events(
    job_id: str,
    request: Request,
    parts: ServicesDep,
    who: PrincipalDep,
    after: Annotated[int | None, Query(ge=0, description="Number of the last event known")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response | EventsOut:
    """Return events after a number; with `Accept: text/event-stream`, as a live stream."""
    start = _position(after, last_event_id)
    with parts.database.read() as session:
        ended = jobs.get(session, job_id).state in ENDED
        found = list(events.after(session, job_id, start, limit=limit + 1))
    if MEDIA_TYPE in request.headers.get("accept", ""):
        if ended and not found:
            # 204 tells a browser's EventSource to stop connecting again.
            return Response(status_code=204)
        if not parts.streams.acquire(blocking=False):
            raise TooManyStreams(
                f"{parts.settings.max_event_streams} event streams are open, which is the limit"
            )
        return EventStream(parts, job_id, start)
    data = [event_out(event) for event in found[:limit]]
    return EventsOut(
        data=data,
        has_more=len(found) > limit,
        last_seq=data[-1].seq if data else start,
    )
