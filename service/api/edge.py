"""Before any endpoint: request ids, host names, origins and body sizes. Pure ASGI."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors
from service.errors import BodyTooLarge, HostRefused
from service.logs import new_request_id, request_id

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}


def host_name(value: str) -> str:
    """Return the name in a `Host` header or a URL's authority, without its port, in lower case."""
    name, bracket, _ = value.partition("]")
    return (name + bracket if bracket else value.partition(":")[0]).lower()


class Edge:
    """Gives each request an id, refuses foreign hosts and origins, and bounds bodies.

    A page on another site can make a browser send requests here: under a name rebound to this
    machine (so `Host` is checked), or as a form (so the `Origin` of unsafe requests is checked).

    Args:
        app: What comes after.
        hosts: Accepted host names; `*` accepts any.
        max_body_bytes: Given a method and a path, the largest body.
    """

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str], max_body_bytes: Callable[[str, str], int]
    ) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Never reset: each request runs in a task of its own, and what answers an unexpected
        # failure does so after this method has ended.
        request_id.set(new_request_id(headers.get(REQUEST_ID)))
        started = time.monotonic()
        status = 500

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out[REQUEST_ID] = request_id.get() or ""
                for name, value in SAFE_HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        try:
            await self._checked(scope, receive, marked, headers)
        finally:
            logger.debug(
                "request answered",
                extra={
                    "action": "request_answered",
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_ms": round(1000 * (time.monotonic() - started), 1),
                },
            )

    async def _checked(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        limit = self._max_body_bytes(scope["method"], scope["path"])
        refusal = self._foreign(scope["method"], headers) or _declared_too_large(headers, limit)
        if refusal is not None:
            answer = errors.domain_error(Request(scope), refusal)
            await answer(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                # The framework passes on an HTTPException raised while it reads a body.
                raise HTTPException(413, _too_large(limit))
            return message

        await self._app(scope, counted, send)

    def _foreign(self, method: str, headers: Headers) -> HostRefused | None:
        if "*" in self._hosts:
            return None
        host = host_name(headers.get("host", ""))
        if host not in self._hosts:
            return HostRefused(
                f"The request came for host {host!r}; {sorted(self._hosts)} are ours"
            )
        origin = headers.get("origin")
        if origin is not None and method not in ("GET", "HEAD"):
            name = host_name(urlsplit(origin).netloc)
            if name not in self._hosts:
                return HostRefused(f"The request came from a page of {origin!r}, not from ours")
        return None


def _too_large(limit: int) -> str:
    return f"The body is larger than this server takes: {limit:,} bytes"


def _declared_too_large(headers: Headers, limit: int) -> BodyTooLarge | None:
    text = headers.get("content-length", "0")
    if text.isascii() and text.isdigit() and int(text) > limit:
        return BodyTooLarge(
            f"The body has {int(text):,} bytes; this server takes at most {limit:,} here",
            extra={"limit_bytes": limit},
        )
    return None
