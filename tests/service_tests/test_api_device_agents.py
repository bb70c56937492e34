"""Boards over HTTP: what they may do, and what of them is not believed."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.device_agents import MAX_RESULT_BYTES
from service.db import api_keys
from service.db.device_tables import TimingOrderRow
from service.db.timing_queue import SqlTimingQueue
from tests.service_tests.api_world import World, assert_problem, world
from tests.service_tests.boards import CPU, DEVICE, job_with_trials, order_of, times_npz
from tests.service_tests.stored import Clock

API = "/api/v1/devices"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as found:
        yield found


@dataclasses.dataclass
class Board:
    """An agent that does as the test says."""

    api: World
    name: str
    token: str = ""

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        own = {"X-Agent-Name": self.name, "X-Agent-Token": self.token, **headers}
        answer: httpx.Response = self.api.client.post(API + path, json=body, headers=own)
        return answer

    def pull(self, **headers: str) -> httpx.Response:
        return self.post(f"/agents/{self.name}:pull", **headers)

    def result(self, order: dict[str, Any], **changes: Any) -> httpx.Response:
        body: dict[str, Any] = {"attempt": order["attempt"], "times": encoded([1.0], [2.0])}
        body.update(changes)
        body = {key: value for key, value in body.items() if value is not None}
        return self.post(f"/orders/{order['id']}:result", body)

    def file(self, order: dict[str, Any], part: str, **headers: str) -> httpx.Response:
        own = {"X-Agent-Name": self.name, "X-Agent-Token": self.token}
        own |= {"X-Order-Attempt": order["attempt"], **headers}
        path = f"{API}/orders/{order['id']}/files/{part}"
        answer: httpx.Response = self.api.client.get(path, headers=own)
        return answer


def encoded(candidate_ms: Any, baseline_ms: Any) -> str:
    return base64.b64encode(times_npz(candidate_ms, baseline_ms)).decode()


def registration(name: str, **changes: Any) -> dict[str, Any]:
    hardware = {"cpu": CPU}
    body = {"name": name, "pool": "kitchen", "runtime": "onnxruntime", "hardware": hardware}
    return body | changes


def board(api: World, name: str = "pi-1", **changes: Any) -> Board:
    answer = api.client.post(f"{API}/agents", json=registration(name, **changes))
    assert answer.status_code == 201, answer.text
    return Board(api, name, answer.json()["token"])


def ordered(api: World, age_s: float = 60.0) -> dict[str, Any]:
    """Store an order with its files, lease it to a board and return both."""
    job, (trial,) = job_with_trials(api.database, Clock())
    parts = {part: api.services.store.put(part.encode()) for part in ("c", "b", "p")}
    order = dataclasses.replace(
        order_of(trial), candidate=parts["c"], baseline=parts["b"], probe=parts["p"]
    )
    SqlTimingQueue(api.database, job).ask(order)
    agent = board(api)
    answer = agent.pull()
    assert answer.status_code == 200, answer.text
    with api.database.write() as session:
        row = session.get(TimingOrderRow, answer.json()["id"])
        assert row is not None
        assert row.leased_at is not None
        row.leased_at -= datetime.timedelta(seconds=age_s)
    return {"board": agent, "job": job, **answer.json()}


def test_a_board_is_a_device_and_its_agent_is_listed(api: World) -> None:
    board(api)
    found = {d["name"]: d for d in api.client.get(API).json()["data"]}
    assert found["local/onnxruntime"]["place"] == "local"
    kitchen = found[DEVICE]
    assert (kitchen["place"], kitchen["runtime"], kitchen["threads"]) == ("agent", "onnxruntime", 1)
    assert kitchen["hardware"] == {"cpu": CPU}
    (agent,) = kitchen["agents"]
    assert (agent["name"], agent["state"]) == ("pi-1", "ACTIVE")
    assert "token" not in str(kitchen)


def test_a_pool_has_what_its_boards_have_in_common(api: World) -> None:
    board(api, hardware={"cpu": CPU, "python": "3.11.2"})
    board(api, "pi-2", hardware={"cpu": CPU, "python": "3.12.1"})
    assert api.client.get(f"{API}/{DEVICE}").json()["hardware"] == {"cpu": CPU}


def test_a_board_unlike_its_pool_is_refused_with_both_named(api: World) -> None:
    board(api)
    answer = api.client.post(f"{API}/agents", json=registration("pi-2", hardware={"cpu": "x86"}))
    detail = assert_problem(answer, 409, "pool-mismatch")["detail"]
    assert "'pi-2' has the CPU 'x86', and 'pi-1' has 'Cortex-A76'" in detail


def test_wrong_registrations_are_refused(api: World) -> None:
    for changes, pointer in (
        ({"name": "no spaces please"}, "/name"),
        ({"name": "a/b"}, "/name"),
        ({"runtime": "abacus"}, "/runtime"),
        ({"threads": 0}, "/threads"),
        ({"clock": "12:00"}, "/clock"),
    ):
        answer = api.client.post(f"{API}/agents", json=registration("pi-1") | changes)
        assert_problem(answer, 422, "validation", pointer)
    board(api)
    again = api.client.post(f"{API}/agents", json=registration("pi-1"))
    assert_problem(again, 409, "name-taken")


def test_an_order_goes_out_once_and_its_result_comes_in_once(api: World) -> None:
    order = ordered(api)
    agent: Board = order["board"]
    assert agent.pull().status_code == 204
    assert order["device"]["name"] == DEVICE
    assert agent.file(order, "candidate").content == b"c"
    first = agent.result(order)
    assert (first.status_code, first.json()["state"]) == (200, "DONE")
    # The answer was lost on the way: sending it again changes nothing.
    assert agent.result(order, times=encoded([5.0], [6.0])).json() == first.json()
    answers = SqlTimingQueue(api.database, order["job"]).answers([order["id"]])
    times = answers[order["id"]].times
    assert times is not None
    assert api.services.store.get(times) == times_npz([1.0], [2.0])


def test_only_the_holder_reads_an_orders_files_and_only_those(api: World) -> None:
    order = ordered(api)
    agent, other = order["board"], board(api, "pi-2")
    assert_problem(other.file(order, "candidate"), 409, "attempt-stale")
    assert_problem(agent.file(order | {"attempt": "guess"}, "probe"), 409, "attempt-stale")
    assert_problem(agent.file(order, "probe", **{"X-Agent-Token": "guess"}), 403, "agent-refused")
    assert_problem(agent.file(order, "weights"), 404, "not-found")
    agent.result(order)
    assert_problem(agent.file(order, "candidate"), 409, "attempt-stale")


def test_stale_and_foreign_attempts_are_refused(api: World) -> None:
    order = ordered(api)
    agent, other = order["board"], board(api, "pi-2")
    assert_problem(agent.result(order, attempt="lea_older"), 409, "attempt-stale")
    assert_problem(other.result(order), 409, "attempt-stale")
    assert_problem(
        other.post(f"/orders/{order['id']}:renew", {"attempt": "x"}), 409, "attempt-stale"
    )
    assert_problem(Board(api, "pi-1", "guess").result(order), 403, "agent-refused")
    assert_problem(agent.result({**order, "id": "tor_none"}), 404, "not-found")
    renewed = agent.post(f"/orders/{order['id']}:renew", {"attempt": order["attempt"]})
    assert renewed.status_code == 200
    assert agent.result(order).status_code == 200


@pytest.mark.parametrize(
    ("candidate", "baseline", "what"),
    [
        ([0.0, 1.0], [1.0, 1.0], "from 0 to 1 ms"),
        ([-1.0, 1.0], [1.0, 1.0], "from -1 to 1 ms"),
        ([np.inf, 1.0], [1.0, 1.0], "to inf ms"),
        ([np.nan, np.nan], [1.0, 1.0], "without any time"),
        ([1.0, 1.0], [1.0], "shape"),
        (["1"], ["1"], "type"),
        ([], [], "shape"),
        # A clock that runs a thousand times too fast: more time than passed here.
        ([40_000.0], [40_000.0], r"sum up to 80\.000 s; the order was leased [67]\d\.\d{3} s ago"),
    ],
)
def test_implausible_times_are_refused(
    api: World, candidate: Any, baseline: Any, what: str
) -> None:
    order = ordered(api)
    answer = order["board"].result(order, times=encoded(candidate, baseline))
    problem = assert_problem(answer, 422, "result-implausible", "/times")
    assert re.search(what, problem["detail"])
    # Nothing was stored: the right result is still taken.
    assert order["board"].result(order).status_code == 200


def test_what_is_no_result_is_refused(api: World) -> None:
    order = ordered(api)
    agent: Board = order["board"]
    assert_problem(agent.result(order, times="%%%"), 422, "result-implausible", "/times")
    wrong = base64.b64encode(b"PK\x03\x04 no archive").decode()
    assert_problem(agent.result(order, times=wrong), 422, "result-implausible", "/times")
    assert_problem(agent.result(order, times=None), 422, "validation")
    assert_problem(agent.result(order, failure="both"), 422, "validation")
    assert_problem(agent.result(order, measured_at="2031-01-01"), 422, "validation", "/measured_at")
    foreign = {"metric": "latency_ms", "value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    foreign |= {"device": "local/onnxruntime", "statistic": "p50"}
    answer = agent.result(order, readings=[foreign])
    assert_problem(answer, 422, "result-implausible", "/readings")


def test_a_huge_upload_is_refused_before_it_is_read(api: World) -> None:
    order = ordered(api)
    answer = order["board"].result(order, times="A" * MAX_RESULT_BYTES)
    assert_problem(answer, 413, "body-too-large")
    assert order["board"].result(order).status_code == 200


def test_an_archive_that_unpacks_to_too_much_is_refused(api: World) -> None:
    import io

    out = io.BytesIO()
    zeros = np.ones(9 << 20)
    np.savez_compressed(out, candidate_ms=zeros, baseline_ms=zeros)
    order = ordered(api)
    times = base64.b64encode(out.getvalue()).decode()
    answer = order["board"].result(order, times=times)
    assert "is the limit" in assert_problem(answer, 422, "result-implausible")["detail"]


def test_a_lying_clock_of_the_agent_does_not_matter(api: World) -> None:
    order = ordered(api)
    agent: Board = order["board"]
    future = {"Date": "Fri, 01 Jan 2100 00:00:00 GMT"}
    body = {"attempt": order["attempt"]}
    assert agent.post(f"/orders/{order['id']}:renew", body, **future).status_code == 200
    assert agent.result(order).status_code == 200
    answer = SqlTimingQueue(api.database, order["job"]).answers([order["id"]])[order["id"]]
    assert 60 <= answer.seconds < 120
    (agent_seen,) = api.client.get(f"{API}/{DEVICE}").json()["agents"]
    assert agent_seen["seen_at"] < "2090"


def test_a_drained_agent_gets_nothing(api: World) -> None:
    agent = board(api)
    assert api.client.post(f"{API}/agents/pi-1:drain").json()["state"] == "DRAINING"
    assert_problem(agent.pull(), 409, "illegal-state")
    assert_problem(api.client.post(f"{API}/agents/nobody:drain"), 404, "not-found")


def test_a_pull_waits_for_an_order(api: World) -> None:
    agent = board(api)
    answer = agent.pull(Prefer="wait=1")
    assert answer.status_code == 204
    assert answer.headers["preference-applied"] == "wait=1"


def test_an_api_key_is_asked_for_beside_the_agents_token(tmp_path: Path) -> None:
    with world(tmp_path, require_api_key=True) as api:
        with api.database.write() as session:
            _, reader = api_keys.create(session, name="r", scopes=["read"])
            _, writer = api_keys.create(session, name="w", scopes=["write"])
        body = registration("pi-1")
        assert_problem(api.client.post(f"{API}/agents", json=body), 401, "key-required")
        for key, status in ((reader, 403), (writer, 201)):
            headers = {"Authorization": f"Bearer {key}"}
            answer = api.client.post(f"{API}/agents", json=body, headers=headers)
            assert answer.status_code == status


def test_constraints_may_name_boards_and_local_devices_at_once(api: World) -> None:
    board(api)

    def bound(device: str) -> dict[str, Any]:
        relative = {"at_most": 0.6, "relative_to": "baseline"}
        return {"metric": "latency_ms", "device": device, **relative}

    devices = (DEVICE, "local/onnxruntime", "local/onnxruntime-1t-b4")
    job_id = api.post_job(constraints=[bound(device) for device in devices])
    spec = api.client.get(f"/api/v1/jobs/{job_id}").json()["spec"]
    places = {device["name"]: device["place"] for device in spec["devices"]}
    assert places == {DEVICE: "agent", devices[1]: "local", devices[2]: "local"}
    for device, what in (
        ("board/cellar", "No board of pool 'cellar' has ever registered"),
        ("local/onnxruntime-99t", "has 99 threads; this server has"),
        ("local/abacus", "Unknown runtime 'abacus'"),
        ("kitchen", "did you mean"),
    ):
        answer = api.client.post("/api/v1/jobs", json=api.job_body(constraints=[bound(device)]))
        problem = assert_problem(answer, 422, "validation", "/constraints/0/device")
        assert what in problem["detail"]
