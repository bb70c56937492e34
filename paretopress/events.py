"""The event log of a job, live: SSE with reconnection, or polling where SSE does not come through.

Events are numbered 1, 2, 3, ... within a job. Whatever breaks, the reader asks for what comes after
the last number it yielded, so every event is yielded once and in order.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator

import httpx
from pydantic import ValidationError

from paretopress.errors import ServerUnreachable
from paretopress.problems import ApiProblem
from paretopress.types import Event, EventPage
from paretopress.wire import Wire

logger = logging.getLogger(__name__)

POLL_S = 1.0
# Streams that broke without one event before the reader polls instead: a proxy that buffers SSE
# looks like this, a server restart does not.
BROKEN_STREAMS = 3
# Polls that may fail in a row before giving up: about the time a machine needs to come back.
BROKEN_POLLS = 30


@dataclasses.dataclass(frozen=True, slots=True)
class SseMessage:
    """One message of a `text/event-stream`.

    Attributes:
        data: Lines joined by newlines.
        event: Kind; `message` where the stream gives none.
        id: Last identifier the stream gave so far; empty before the first.
    """

    data: str
    event: str
    id: str


def parse_sse(lines: Iterable[str]) -> Iterator[SseMessage]:
    """Yield the messages of an event stream (WHATWG HTML, section 9.2.6).

    A message that its blank line does not end is dropped, as the standard asks: the connection
    broke within it.

    Args:
        lines: Without their ends.
    """
    data: list[str] = []
    kind = last_id = ""
    for line in lines:
        if not line:
            if data:
                yield SseMessage("\n".join(data), kind or "message", last_id)
            data, kind = [], ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            kind = value
        elif field == "id" and "\0" not in value:
            last_id = value


class _NotAStream(Exception):
    """The server, or something before it, answered with something else than an event stream."""


def follow(
    wire: Wire,
    path: str,
    *,
    after: int = 0,
    ended: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Yield events as they happen, until the job has ended and its last event was yielded.

    Args:
        wire: Connection.
        path: Of the events resource.
        after: Yield only events with a larger number.
        ended: Whether the job is finished; asked before every reading, so that what was written
            before the end is still read after it.
        sleep: Waits a number of seconds.

    Raises:
        ApiProblem: The server refused, for example because the job does not exist.
        ServerUnreachable: The server stayed away.
    """
    last, broken = after, 0
    while broken < BROKEN_STREAMS:
        over = _tolerant(ended)
        read = 0
        try:
            for event in _stream(wire, path, last):
                if event.seq > last:
                    last, broken, read = event.seq, 0, read + 1
                    yield event
                    if event.ends_job:
                        return
        except _NotAStream:
            break
        except ServerUnreachable as error:
            logger.debug("event stream broke", extra={"path": path, "reason": str(error)})
        if over and not read:
            return
        if not read:
            broken += 1
            sleep(POLL_S)
    yield from _poll(wire, path, last, ended, sleep)


def _tolerant(ended: Callable[[], bool]) -> bool:
    try:
        return ended()
    except ServerUnreachable:
        return False


def _stream(wire: Wire, path: str, last: int) -> Iterator[Event]:
    headers = {"Accept": "text/event-stream"}
    if last:
        headers["Last-Event-ID"] = str(last)
    with wire.stream(path, headers=headers) as response:
        if response.status_code == httpx.codes.NO_CONTENT:
            # The job has ended, and nothing came after `last`.
            return
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise _NotAStream
        for message in parse_sse(response.iter_lines()):
            event = _event(message)
            if event is not None:
                yield event


def _event(message: SseMessage) -> Event | None:
    """Return the event of a message; None for what is not one (pings, unknown forms)."""
    try:
        body = json.loads(message.data)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    filled = {"seq": message.id, "kind": message.event, **body}
    if "payload" not in body and "seq" not in body:
        filled = {"seq": message.id, "kind": message.event, "payload": body}
    try:
        return Event.model_validate(filled)
    except ValidationError:
        return None


def _poll(
    wire: Wire,
    path: str,
    last: int,
    ended: Callable[[], bool],
    sleep: Callable[[float], None],
) -> Iterator[Event]:
    broken = 0
    while True:
        over = _tolerant(ended)
        try:
            answer = wire.request("GET", path, params={"after": last})
        except (ServerUnreachable, ApiProblem) as error:
            broken += 1
            if broken >= BROKEN_POLLS or (isinstance(error, ApiProblem) and error.status < 500):
                raise
            sleep(POLL_S)
            continue
        broken = 0
        page = EventPage.model_validate(answer.json())
        fresh = [event for event in page.data if event.seq > last]
        for event in fresh:
            last = event.seq
            yield event
            if event.ends_job:
                return
        if over and not fresh:
            return
        if not (fresh and page.has_more):
            sleep(POLL_S)
