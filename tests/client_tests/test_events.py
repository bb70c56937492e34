"""Every event once and in order, whatever the connection does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.events import BROKEN_POLLS, BROKEN_STREAMS, SseMessage, follow, parse_sse
from paretopress.problems import ApiProblem
from paretopress.types import Event
from paretopress.wire import Wire

PATH = "/api/v1/jobs/job_1/events"


def sse(*seqs: int, last: bool = False) -> bytes:
    """Events with these numbers; the last one ends the job if asked."""
    text = ": hello\n\n"
    for seq in seqs:
        ends = last and seq == seqs[-1]
        kind = "job.succeeded" if ends else "trial.finished"
        payload = {"state": "SUCCEEDED"} if ends else {"trial_id": f"trl_{seq}"}
        data = json.dumps({"seq": seq, "kind": kind, "payload": payload})
        text += f"id: {seq}\nevent: {kind}\ndata: {data}\n\n"
    return text.encode()


class BrokenBody(httpx.SyncByteStream):
    """A body whose connection breaks after some bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content
        raise httpx.ReadError("scripted break")


class Server:
    """Answers event requests from a list; the answers after the list repeat its last."""

    def __init__(self, *answers: Callable[[], httpx.Response]) -> None:
        self.answers = list(answers)
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer()

    def follow(self, *, after: int = 0, ended: bool = False) -> list[Event]:
        wire = Wire("http://server", transport=httpx.MockTransport(self), sleep=lambda _: None)
        return list(follow(wire, PATH, after=after, ended=lambda: ended, sleep=lambda _: None))


STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}


def whole(content: bytes) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, content=content, headers=STREAM)


def broken(content: bytes) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, stream=BrokenBody(content), headers=STREAM)


def page(*seqs: int, has_more: bool = False) -> Callable[[], httpx.Response]:
    data = [{"seq": s, "kind": "trial.finished", "payload": {}} for s in seqs]
    return lambda: httpx.Response(200, json={"data": data, "has_more": has_more})


def test_a_stream_is_read_to_the_end_of_the_job() -> None:
    events = Server(whole(sse(1, 2, 3, last=True))).follow()
    assert [e.seq for e in events] == [1, 2, 3]
    assert events[0].payload == {"trial_id": "trl_1"}
    assert events[-1].ends_job


def test_a_broken_stream_goes_on_after_the_last_event() -> None:
    server = Server(broken(sse(1, 2)), whole(sse(3, 4, last=True)))
    assert [e.seq for e in server.follow()] == [1, 2, 3, 4]
    assert "Last-Event-ID" not in server.seen[0].headers
    assert server.seen[1].headers["Last-Event-ID"] == "2"


def test_a_break_within_an_event_yields_it_once() -> None:
    cut = sse(1, 2)[:-20]
    server = Server(broken(cut), whole(sse(2, 3, last=True)))
    assert [e.seq for e in server.follow()] == [1, 2, 3]


def test_a_server_that_sends_old_events_again_is_not_believed() -> None:
    server = Server(broken(sse(1, 2)), whole(sse(1, 2, 3, last=True)))
    assert [e.seq for e in server.follow()] == [1, 2, 3]


def test_watching_may_begin_in_the_middle() -> None:
    server = Server(whole(sse(8, last=True)))
    assert [e.seq for e in server.follow(after=7)] == [8]
    assert server.seen[0].headers["Last-Event-ID"] == "7"


def test_a_server_without_streams_is_polled() -> None:
    server = Server(page(1, 2, has_more=True), page(1, 2, has_more=True), page(3), page())
    assert [e.seq for e in server.follow(ended=True)] == [1, 2, 3]
    assert server.seen[2].url.params["after"] == "2"


def test_streams_that_never_bring_anything_are_given_up_for_polling() -> None:
    server = Server(*[broken(b"")] * BROKEN_STREAMS, page(1), page())
    wire = Wire("http://server", transport=httpx.MockTransport(server), sleep=lambda _: None)
    ends = iter([False] * (BROKEN_STREAMS + 1) + [True] * 9)
    events = list(follow(wire, PATH, ended=lambda: next(ends), sleep=lambda _: None))
    assert [e.seq for e in events] == [1]


def test_an_ended_job_with_a_silent_stream_ends_the_watching() -> None:
    assert Server(whole(b": ping\n\n")).follow(ended=True) == []


def test_an_unknown_job_is_refused_at_once() -> None:
    server = Server(lambda: httpx.Response(404, json={"title": "There is no such resource"}))
    with pytest.raises(ApiProblem, match="no such resource"):
        server.follow()
    assert len(server.seen) == 1


def test_polling_outlives_a_restart_but_not_for_ever() -> None:
    busy = [lambda: httpx.Response(200, json={"data": []}), lambda: httpx.Response(500, json={})]
    server = Server(*busy)
    with pytest.raises(ApiProblem):
        server.follow()
    assert len(server.seen) >= BROKEN_POLLS


def test_bare_payloads_and_unknown_forms_are_tolerated() -> None:
    content = (
        b'id: 1\nevent: trial.started\ndata: {"trial_id": "t"}\n\n'
        b"id: 2\nevent: x\ndata: not json\n\n"
        b"data: [1]\n\n"
        b'id: 3\nevent: job.cancelled\ndata: {"state": "CANCELLED"}\n\n'
    )
    events = Server(whole(content)).follow()
    assert [(e.seq, e.kind) for e in events] == [(1, "trial.started"), (3, "job.cancelled")]
    assert events[0].payload == {"trial_id": "t"}


def test_sse_fields_follow_the_standard() -> None:
    lines = [":comment", "id:7", "event: a", "data:x", "data:  y", "", "data: z", "", "data: cut"]
    assert list(parse_sse(lines)) == [
        SseMessage("x\n y", "a", "7"),
        SseMessage("z", "message", "7"),
    ]


field_text = st.text(
    st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20
)


@given(st.lists(st.tuples(field_text, st.lists(field_text, min_size=1, max_size=3)), max_size=5))
def test_what_is_written_is_read(messages: list[tuple[str, list[str]]]) -> None:
    lines: list[str] = []
    for seq, (kind, data) in enumerate(messages):
        lines += [f"id: {seq}", f"event: {kind}", *(f"data: {line}" for line in data), ""]
    expected = [
        SseMessage("\n".join(data), kind or "message", str(seq))
        for seq, (kind, data) in enumerate(messages)
    ]
    assert list(parse_sse(lines)) == expected
