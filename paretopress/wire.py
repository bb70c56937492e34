"""HTTP with retries: what is safe to repeat is repeated, everything else is sent once.

A request is safe to repeat when its method is (GET, HEAD), or when it carries an
`Idempotency-Key`: the server then answers a repetition with the first answer.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import httpx

from paretopress.errors import ServerUnreachable
from paretopress.problems import ApiProblem

logger = logging.getLogger(__name__)

API = "/api/v1"
SAFE_METHODS = frozenset({"GET", "HEAD"})
# Slow enough to outlive the restart of a server process, quick enough not to annoy at a prompt.
DELAYS_S = (0.2, 0.5, 1.0, 2.0)
MAX_RETRY_AFTER_S = 30.0
# 502-504 say that the server is being restarted, 429 that it is asked too much.
BUSY_STATUSES = frozenset({429, 502, 503, 504})
# The server pings an idle event stream at least every 15 s; twice that means the line is dead.
STREAM_SILENCE_S = 35.0

Part = tuple[str | None, IO[bytes] | str, str]
"""File name (None for a plain field), content and media type of a part of a multipart body."""
Parts = Callable[[contextlib.ExitStack], Mapping[str, Part]]
"""Opens the parts of a multipart body.

Called once per attempt, so that a repetition reads every file from its start.
"""


def _is_loopback(url: httpx.URL) -> bool:
    return url.host in ("localhost", "::1") or url.host.startswith("127.")


class Wire:
    """A connection to one server; thread-safe as `httpx.Client` is.

    Args:
        url: Root of the server, for example `http://127.0.0.1:8080`.
        api_key: Sent as a bearer token; None where the server asks for none.
        timeout_s: Longest silence within one request.
        transport: Replaces the network, for tests.
        sleep: Waits a number of seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._sleep = sleep
        headers = {"Accept": "application/json, application/problem+json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout_s,
            transport=transport,
            # Proxies of the environment are for the world, not for this machine.
            trust_env=not _is_loopback(httpx.URL(self.url)),
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        parts: Parts | None = None,
    ) -> httpx.Response:
        """Send a request and return the successful answer.

        Args:
            method: HTTP method.
            path: Below the root, for example `/api/v1/jobs`.
            json: Body, as JSON data.
            params: Query.
            headers: Beside the usual ones; an `Idempotency-Key` makes a POST repeatable.
            parts: A multipart body.

        Raises:
            ApiProblem: The server refused.
            ServerUnreachable: Nobody answered, also after the repetitions.
        """
        given = dict(headers or {})
        repeatable = method in SAFE_METHODS or "Idempotency-Key" in given
        for delay_s in (*DELAYS_S, None):
            try:
                with contextlib.ExitStack() as opened:
                    response = self._http.request(
                        method,
                        path,
                        json=json,
                        params=params,
                        headers=given,
                        files=parts(opened) if parts else None,
                    )
            except httpx.TransportError as error:
                # A refused connection sent nothing: repeating is always safe.
                if delay_s is None or not (repeatable or isinstance(error, httpx.ConnectError)):
                    raise self._unreachable(error) from error
                logger.debug("request repeated", extra={"path": path, "reason": repr(error)})
                self._sleep(delay_s)
                continue
            if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
                return response
            problem = ApiProblem.of(response)
            if delay_s is None or not repeatable or not _passing(problem):
                raise problem
            self._sleep(max(delay_s, _retry_after_s(response)))
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        silence_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Open a GET whose body is read piece by piece; sent once, not repeated.

        Raises:
            ApiProblem: The server refused.
            ServerUnreachable: Nobody answered, or the connection broke while reading.
        """
        timeout = httpx.Timeout(self._http.timeout.connect, read=silence_s or STREAM_SILENCE_S)
        try:
            with self._http.stream(
                "GET", path, headers=dict(headers or {}), params=params, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                    raise ApiProblem.of(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> ServerUnreachable:
        if isinstance(error, httpx.ConnectError):
            return ServerUnreachable(
                f"No ParetoPress server answers at {self.url}. Start one with `paretopress serve`, "
                "or name another with --url or PARETOPRESS_URL."
            )
        return ServerUnreachable(f"The connection to {self.url} broke: {error!r}")


def _passing(problem: ApiProblem) -> bool:
    """Whether the same request may succeed a moment later."""
    return problem.status in BUSY_STATUSES or problem.document.get("retryable") is True


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(MAX_RETRY_AFTER_S, max(0.0, float(response.headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0
