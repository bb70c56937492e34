"""What endpoints are given: the process's parts, who asks, and how long they may wait."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request, Response

from service.db import api_keys, devices
from service.db.devices import StoredDevice
from service.db.session import Database
from service.device_book import DeviceBook
from service.errors import KeyForbidden, KeyRequired
from service.settings import Settings
from workers.store import ArtifactStore

T = TypeVar("T")

MAX_WAIT_S = 60.0
WAIT_POLL_S = 0.2
# A waiting request holds a thread of the server's pool (40): more than this many do not wait.
MAX_WAITERS = 16

READ, WRITE, ADMIN = "read", "write", "admin"
"""What an API key may do; each includes the ones before it."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of an API process, made once in `service.app.create_app`.

    Attributes:
        settings: What the operator set.
        database: The only truth.
        store: Where files are.
        waiters: Places for requests that wait.
        streams: Places for event streams.
    """

    settings: Settings
    database: Database
    store: ArtifactStore
    waiters: threading.BoundedSemaphore
    streams: threading.BoundedSemaphore

    def stored_devices(self) -> dict[str, StoredDevice]:
        """Return by name what the database has of devices: boards, and fingerprints of others."""
        with self.database.read() as session:
            return {stored.spec.name: stored for stored in devices.everything(session)}

    def devices(self) -> DeviceBook:
        """Return every device that constraints may name."""
        return DeviceBook({name: stored.spec for name, stored in self.stored_devices().items()})


def services(request: Request) -> Services:
    """Return the process's parts."""
    parts: Services = request.app.state.services
    return parts


ServicesDep = Annotated[Services, Depends(services)]


def principal(request: Request, parts: ServicesDep) -> str:
    """Return who asks: the id of the API key, or empty text where none is required.

    Raises:
        KeyRequired: A key is required and there is no valid one.
        KeyForbidden: The key does not allow the request's method.
    """
    if not parts.settings.require_api_key:
        return ""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise KeyRequired("Send the API key as 'Authorization: Bearer <key>'")
    with parts.database.read() as session:
        key = api_keys.verify(session, text.strip())
    if key is None:
        raise KeyRequired("The API key is wrong, expired or revoked")
    needed = (READ, WRITE, ADMIN) if request.method in SAFE_METHODS else (WRITE, ADMIN)
    if not set(needed) & set(key.scopes):
        raise KeyForbidden(
            f"Key {key.prefix} has the scopes {list(key.scopes)}; "
            f"{request.method} needs one of {list(needed)}"
        )
    return key.id


PrincipalDep = Annotated[str, Depends(principal)]

Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before")]
Limit = Annotated[int, Query(ge=1, le=200, description="Items per page")]

_WAIT = re.compile(r"(?:^|[,;])\s*wait=(\d{1,6})\s*(?:$|[,;])")


def wait_s(request: Request) -> float:
    """Return how long `Prefer: wait=n` (RFC 7240) allows, at most `MAX_WAIT_S`; 0 without it."""
    match = _WAIT.search(request.headers.get("prefer", ""))
    return min(MAX_WAIT_S, float(match.group(1))) if match else 0.0


WaitDep = Annotated[float, Depends(wait_s)]


def wait_until(
    parts: Services,
    response: Response,
    seconds: float,
    load: Callable[[], T],
    done: Callable[[T], bool],
) -> T:
    """Return what `load` gives as soon as `done` says so, or after `seconds`.

    Args:
        parts: The process's parts.
        response: Gets `Preference-Applied` where waiting was possible.
        seconds: Longest wait; 0 asks once.
        load: Reads the thing, in its own transaction.
        done: Whether it need not wait longer.
    """
    found = load()
    if seconds <= 0 or not parts.waiters.acquire(blocking=False):
        return found
    try:
        response.headers["Preference-Applied"] = f"wait={seconds:g}"
        deadline = time.monotonic() + seconds
        while not done(found) and time.monotonic() < deadline:
            time.sleep(WAIT_POLL_S)
            found = load()
        return found
    finally:
        parts.waiters.release()
