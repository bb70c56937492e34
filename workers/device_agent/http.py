"""The agent's side of the wire: calls, what they may come to, and patience."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from workers.device_agent.order import FILES, Kept, Order

logger = logging.getLogger(__name__)

API = "/api/v1/devices"
CONNECT_S = 5.0
SILENCE_S = 20.0
"""Longest silence within one request, beside what it waits on purpose."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
"""Pauses after which a server that does not answer is asked again; each is twice the last."""

MAX_FILE_BYTES = 2 << 30

T = TypeVar("T")


class Unreachable(Exception):
    """Nobody answered, or the server says that it cannot answer now."""


class Refused(Exception):
    """The server refused.

    Attributes:
        status: HTTP status.
        slug: Kind of problem, the last part of its type.
    """

    def __init__(self, status: int, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug


class WrongHash(Exception):
    """A downloaded file is not the one that was ordered."""


class Server:
    """A server as one agent talks to it.

    Args:
        http: With the server's root as base URL; `open_http` makes one.
        name: The agent's.
        token: What it registered for; empty before.
    """

    def __init__(self, http: httpx.Client, name: str, token: str = "") -> None:
        self.name = name
        self.token = token
        self._http = http

    def register(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Register and take the token that is given."""
        answer: dict[str, Any] = self._call("POST", "/agents", json=body).json()
        self.token = answer["token"]
        return answer

    def pull(self, wait_s: float) -> Order | None:
        """Return the next order; None where none came within `wait_s`."""
        answer = self._call(
            "POST",
            f"/agents/{self.name}:pull",
            headers={"Prefer": f"wait={wait_s:.0f}"},
            silence_s=wait_s + SILENCE_S,
        )
        return (
            None if answer.status_code == httpx.codes.NO_CONTENT else Order.from_json(answer.json())
        )

    def renew(self, order: Order) -> None:
        """Push the end of an order's lease."""
        self._call("POST", f"/orders/{order.id}:renew", json={"attempt": order.attempt})

    def post(self, kept: Kept) -> None:
        """Send what came of an order; sending it again is harmless."""
        self._call("POST", f"/orders/{kept.order_id}:result", json=kept.body)

    def download(self, order: Order, folder: Path) -> None:
        """Fetch the files of an order into a folder, each named as its part.

        Raises:
            WrongHash: A file came wrong twice.
        """
        for part in FILES:
            for again in (True, False):
                found = self._fetch(order, part, folder / part)
                if found == order.files[part]:
                    break
                message = f"{part} has the SHA-256 {found}; {order.files[part]} was ordered"
                if not again:
                    raise WrongHash(f"{message}, twice")
                logger.warning("%s; downloading it again", message)

    def _fetch(self, order: Order, part: str, path: Path) -> str:
        """Stream a file to disk and return its SHA-256."""
        hasher, size = hashlib.sha256(), 0
        try:
            with (
                self._http.stream(
                    "GET",
                    f"{API}/orders/{order.id}/files/{part}",
                    headers={**self._headers(), "X-Order-Attempt": order.attempt},
                ) as answer,
                path.open("wb") as out,
            ):
                if answer.is_error:
                    answer.read()
                _raise_refusal(answer)
                for chunk in answer.iter_bytes():
                    size += len(chunk)
                    if size > MAX_FILE_BYTES:
                        raise WrongHash(f"{part} is larger than {MAX_FILE_BYTES:,} bytes")
                    hasher.update(chunk)
                    out.write(chunk)
        except httpx.TransportError as error:
            raise Unreachable(repr(error)) from error
        return hasher.hexdigest()

    def _headers(self) -> dict[str, str]:
        own = {"X-Agent-Name": self.name}
        return {**own, "X-Agent-Token": self.token} if self.token else own

    def _call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float = SILENCE_S,
    ) -> httpx.Response:
        try:
            answer = self._http.request(
                method,
                API + path,
                json=json,
                headers={**self._headers(), **(headers or {})},
                timeout=httpx.Timeout(silence_s, connect=CONNECT_S),
            )
        except httpx.TransportError as error:
            raise Unreachable(repr(error)) from error
        _raise_refusal(answer)
        return answer


def open_http(url: str, api_key: str | None = None) -> httpx.Client:
    """Return the connection to a server's root."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    return httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout)


def _raise_refusal(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        document = answer.json()
    except ValueError:
        document = {}
    if answer.status_code >= 500 or answer.status_code == 429 or document.get("retryable"):
        raise Unreachable(f"HTTP {answer.status_code}: {document.get('detail', '')}")
    slug = str(document.get("type", "")).rpartition("/")[2]
    raise Refused(answer.status_code, slug, str(document.get("detail", answer.status_code)))


def patiently(
    call: Callable[[], T], *, sleep: Callable[[float], None] = time.sleep, what: str = "server"
) -> T:
    """Return what a call returns, made again for as long as nobody answers.

    Pauses double up to `LONGEST_PAUSE_S`; each is drawn a little shorter, so that the agents of a
    server that comes back do not all come at once.

    Raises:
        Refused: The server answered with a refusal.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Unreachable as error:
            logger.warning("%s does not answer (%s); trying again in %.1f s", what, error, pause_s)
        sleep(pause_s * random.uniform(0.7, 1.0))
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
