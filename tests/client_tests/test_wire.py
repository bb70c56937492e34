"""What is repeated, what is not, and what a refusal reads like."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping

import httpx
import pytest

from paretopress.errors import ServerUnreachable
from paretopress.problems import ApiProblem
from paretopress.wire import DELAYS_S, MAX_RETRY_AFTER_S, Part, Wire

Handler = Callable[[httpx.Request], httpx.Response]


def problem(status: int, slug: str, **more: object) -> httpx.Response:
    document = {"type": f"/problems/{slug}", "title": slug, "status": status, **more}
    content = json.dumps(document).encode()
    return httpx.Response(
        status, content=content, headers={"Content-Type": "application/problem+json"}
    )


class Script:
    """Answers requests one after the other and remembers them."""

    def __init__(self, *answers: httpx.Response | type[httpx.TransportError]) -> None:
        self.answers = list(answers)
        self.seen: list[httpx.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.seen.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, httpx.Response):
            return answer
        raise answer("scripted", request=request)

    def wire(self) -> Wire:
        return Wire("http://server", transport=httpx.MockTransport(self), sleep=self.slept.append)


def test_a_get_is_repeated_until_it_succeeds() -> None:
    script = Script(httpx.ReadTimeout, httpx.Response(503), httpx.Response(200, json={"a": 1}))
    assert script.wire().request("GET", "/x").json() == {"a": 1}
    assert script.slept == list(DELAYS_S[:2])


def test_a_plain_post_is_sent_once() -> None:
    script = Script(httpx.ReadTimeout)
    with pytest.raises(ServerUnreachable):
        script.wire().request("POST", "/x", json={})
    assert len(script.seen) == 1


def test_a_refused_connection_is_repeated_for_every_method() -> None:
    script = Script(httpx.ConnectError, httpx.Response(202, json={}))
    script.wire().request("POST", "/x", json={})
    assert len(script.seen) == 2


def test_a_post_with_a_key_is_repeated_with_the_same_key_and_body() -> None:
    script = Script(httpx.RemoteProtocolError, httpx.Response(202, json={}))
    script.wire().request("POST", "/x", json={"n": 7}, headers={"Idempotency-Key": "k"})
    first, second = script.seen
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"] == "k"
    assert first.content == second.content == b'{"n":7}'


def test_a_multipart_body_is_read_from_its_start_again() -> None:
    file = io.BytesIO(b"weights")

    def parts(stack: contextlib.ExitStack) -> Mapping[str, Part]:
        file.seek(0)
        return {"spec": (None, "{}", "application/json"), "weights": ("w", file, "x/y")}

    script = Script(httpx.WriteError, httpx.Response(202, json={}))
    script.wire().request("POST", "/x", parts=parts, headers={"Idempotency-Key": "k"})
    assert all(b"weights" in request.content for request in script.seen)
    assert all(b'name="spec"' in request.content for request in script.seen)


def test_a_key_in_flight_is_waited_for() -> None:
    script = Script(
        problem(409, "idempotency-key-in-flight", retryable=True), httpx.Response(202, json={})
    )
    script.wire().request("POST", "/x", json={}, headers={"Idempotency-Key": "k"})
    assert len(script.seen) == 2


@pytest.mark.parametrize(
    ("given", "slept"), [("3", 3.0), ("900", MAX_RETRY_AFTER_S), ("soon", 0.2)]
)
def test_retry_after_is_honoured_within_reason(given: str, slept: float) -> None:
    busy = httpx.Response(429, headers={"Retry-After": given})
    script = Script(busy, httpx.Response(200, json={}))
    script.wire().request("GET", "/x")
    assert script.slept == [slept]


def test_a_refusal_is_not_repeated() -> None:
    script = Script(problem(422, "validation", detail="metric 'speed' is unknown"))
    with pytest.raises(ApiProblem, match="metric 'speed' is unknown") as caught:
        script.wire().request("GET", "/x")
    assert (caught.value.status, caught.value.slug) == (422, "validation")
    assert len(script.seen) == 1


def test_the_last_failure_is_told() -> None:
    script = Script(*[httpx.Response(503, text="restarting")] * (len(DELAYS_S) + 1))
    with pytest.raises(ApiProblem, match="restarting"):
        script.wire().request("GET", "/x")
    assert script.slept == list(DELAYS_S)


def test_nobody_there_says_how_to_start_a_server() -> None:
    script = Script(*[httpx.ConnectError] * (len(DELAYS_S) + 1))
    with pytest.raises(ServerUnreachable, match="paretopress serve"):
        script.wire().request("GET", "/x")


def test_a_problem_names_each_field() -> None:
    answer = problem(
        422,
        "validation",
        errors=[{"pointer": "/constraints/0/device", "message": "unknown device 'moon'"}],
    )
    found = ApiProblem.of(answer)
    assert found.errors[0].pointer == "/constraints/0/device"
    assert found.errors[0].message == "unknown device 'moon'"


def test_an_answer_that_is_no_document_is_quoted() -> None:
    found = ApiProblem.of(httpx.Response(502, text="<h1>bad gateway</h1>"))
    assert found.sentence() == "Bad Gateway: <h1>bad gateway</h1>"
    assert found.slug == ""
