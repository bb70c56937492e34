"""The event log: pages, live streams, and where they end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from service.db import events
from service.job_state import JobState
from tests.service_tests.api_world import World, assert_problem, world

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api"), max_event_streams=2) as made:
        yield made


def parse(text: str) -> list[dict[str, str]]:
    """Return the messages of a stream, without comments and retry hints."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if "data" in fields:
            found.append(fields)
    return found


def note(api: World, job_id: str, count: int = 1) -> None:
    with api.database.write() as session:
        for index in range(count):
            events.append(session, job_id, "trial.finished", {"index": index})


def finish(api: World, job_id: str) -> None:
    api.move(job_id, JobState.RUNNING, JobState.FINALIZING, JobState.SUCCEEDED)


def test_pages_go_on_after_a_number(api: World) -> None:
    job_id = api.post_job()
    note(api, job_id, 4)
    path = f"/api/v1/jobs/{job_id}/events"
    found = api.client.get(path).json()
    assert [event["seq"] for event in found["data"]] == [1, 2, 3, 4, 5]
    assert found["data"][0]["kind"] == "job.queued"
    assert found["data"][0]["payload"]["state"] == "QUEUED"
    assert found["has_more"] is False
    page = api.client.get(f"{path}?after=2&limit=2").json()
    assert [event["seq"] for event in page["data"]] == [3, 4]
    assert page["has_more"] is True
    assert page["last_seq"] == 4
    assert api.client.get(f"{path}?after=99").json() == {
        "data": [],
        "has_more": False,
        "last_seq": 99,
    }
    assert_problem(api.client.get(f"{path}?after=-1"), 422, "validation", "#query/after")


def test_a_stream_replays_and_ends_after_the_last_event(api: World) -> None:
    job_id = api.post_job()
    note(api, job_id, 3)
    finish(api, job_id)
    answer = api.client.get(f"/api/v1/jobs/{job_id}/events", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = parse(answer.text)
    assert [int(message["id"]) for message in found] == list(range(1, 8))
    assert found[-1]["event"] == "job.succeeded"
    assert json.loads(found[1]["data"])["payload"] == {"index": 0}
    headers = {**STREAM, "Last-Event-ID": "5"}
    answer = api.client.get(f"/api/v1/jobs/{job_id}/events?after=1", headers=headers)
    assert [message["id"] for message in parse(answer.text)] == ["6", "7"]
    headers = {**STREAM, "Last-Event-ID": "7"}
    assert api.client.get(f"/api/v1/jobs/{job_id}/events", headers=headers).status_code == 204
    headers = {**STREAM, "Last-Event-ID": "seven"}
    answer = api.client.get(f"/api/v1/jobs/{job_id}/events", headers=headers)
    assert_problem(answer, 422, "validation", "#header/Last-Event-ID")


def test_a_stream_is_live_and_pings_in_silence(api: World) -> None:
    job_id = api.post_job()

    def act() -> None:
        time.sleep(0.4)
        note(api, job_id)
        finish(api, job_id)

    thread = threading.Thread(target=act)
    thread.start()
    answer = api.client.get(f"/api/v1/jobs/{job_id}/events", headers=STREAM)
    thread.join()
    assert ": ping" in answer.text
    kinds = [message["event"] for message in parse(answer.text)]
    assert kinds == [
        "job.queued",
        "trial.finished",
        "job.running",
        "job.finalizing",
        "job.succeeded",
    ]


def test_places_for_streams_are_bounded_and_given_back(api: World) -> None:
    job_id = api.post_job()
    streams = api.services.streams
    assert streams.acquire(blocking=False)
    assert streams.acquire(blocking=False)
    answer = api.client.get(f"/api/v1/jobs/{job_id}/events", headers=STREAM)
    assert_problem(answer, 503, "too-many-streams")
    streams.release()
    finish(api, job_id)
    for _ in range(3):
        answer = api.client.get(f"/api/v1/jobs/{job_id}/events", headers=STREAM)
        assert answer.status_code == 200
    streams.release()
