"""The agent of a board against the real API: what it downloads, runs, keeps and gives up."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from compression.artifact import Digest
from compression.onnx_session import open_session, run_batches
from search.device import DeviceSpec
from service.db.device_tables import DeviceAgentRow
from service.db.timing_queue import SqlTimingQueue
from tests.onnx_files import conv_net
from tests.service_tests.api_world import World, world
from tests.service_tests.boards import DEVICE, job_with_trials, order_of
from tests.service_tests.stored import Clock
from workers.device_agent import sandbox
from workers.device_agent.agent import DeviceAgent, Drained, Offer
from workers.device_agent.http import Refused, Server, Unreachable, patiently
from workers.device_agent.order import Order, Outcome
from workers.remote_timing import TimingAnswer

OFFER = Offer(name="pi-1", pool="kitchen", runtime="onnxruntime")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path / "server") as found:
        yield found


def probe_of(file: bytes) -> bytes:
    inputs = np.random.default_rng(1).standard_normal((16, 3, 8, 8), dtype=np.float32)
    out = io.BytesIO()
    np.savez(out, inputs=inputs, expected=run_batches(open_session(file), inputs))
    return out.getvalue()


@dataclasses.dataclass
class Ordered:
    """An order in the queue, and how it is answered."""

    queue: SqlTimingQueue
    order_id: str
    candidate: Digest

    def answer(self) -> TimingAnswer:
        return self.queue.answers([self.order_id])[self.order_id]


def put_order(api: World, *, probe: bytes | None = None, max_seconds: float = 0.3) -> Ordered:
    job, (trial,) = job_with_trials(api.database, Clock())
    candidate, baseline = conv_net(4), conv_net(16)
    store = api.services.store
    order = dataclasses.replace(
        order_of(trial),
        candidate=store.put(candidate),
        baseline=store.put(baseline),
        probe=store.put(probe or probe_of(candidate)),
        max_seconds=max_seconds,
        width=0.5,
    )
    queue = SqlTimingQueue(api.database, job)
    return Ordered(queue, queue.ask(order), order.candidate)


def timed_at_once(folder: Path, order: Order, memory: int, stop: threading.Event) -> Outcome | None:
    """Stand for a board's processor; files and answers are real."""
    assert (folder / "candidate").read_bytes() == conv_net(4)
    out = io.BytesIO()
    np.savez(out, candidate_ms=np.full((8, 4), 1e-3), baseline_ms=np.full((8, 4), 2e-3))
    return Outcome(times=out.getvalue())


def agent_of(api: World, folder: Path, **changes: object) -> DeviceAgent:
    given: dict[str, object] = {"execute": timed_at_once, **changes}
    server = Server(api.client, OFFER.name)
    return DeviceAgent(OFFER, server, folder, **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_order_is_timed_under_limits_and_its_raw_times_are_stored(
    api: World, tmp_path: Path
) -> None:
    ordered = put_order(api)
    agent = agent_of(api, tmp_path / "board", execute=sandbox.run)
    agent.begin()
    assert agent.step(0)
    answer = ordered.answer()
    assert answer.failure is None
    assert answer.times is not None
    with np.load(io.BytesIO(api.services.store.get(answer.times))) as times:
        assert (times["candidate_ms"][~np.isnan(times["candidate_ms"])] > 0).all()
    assert {r["device"] for r in answer.readings} == {DEVICE}
    assert not agent.step(0)


def test_a_result_is_posted_and_forgotten(api: World, tmp_path: Path) -> None:
    ordered = put_order(api)
    agent = agent_of(api, tmp_path / "board")
    agent.begin()
    assert agent.step(0)
    assert ordered.answer().times is not None
    assert not agent.step(0)
    kept = sorted(path.name for path in (tmp_path / "board").iterdir())
    assert kept == ["agent.json"]
    assert (tmp_path / "board" / "agent.json").stat().st_mode & 0o077 == 0


def test_a_file_with_the_wrong_hash_is_downloaded_twice_then_refused(
    api: World, tmp_path: Path
) -> None:
    ordered = put_order(api)
    blob = tmp_path / "server" / "store" / ordered.candidate[:2] / ordered.candidate[2:]
    blob.write_bytes(conv_net(5))
    agent = agent_of(api, tmp_path / "board")
    agent.begin()
    assert agent.step(0)
    failure = ordered.answer().failure
    assert failure is not None
    assert f"{ordered.candidate} was ordered, twice" in failure


def test_a_result_outlives_the_agent_and_a_lost_answer(api: World, tmp_path: Path) -> None:
    ordered = put_order(api)
    agent = agent_of(api, tmp_path / "board")
    agent.begin()

    class Cut(Exception):
        """Stands for kill -9 between finishing and posting."""

    def cut(_kept: object) -> None:
        raise Cut

    agent.server.post = cut  # type: ignore[method-assign,assignment]
    with pytest.raises(Cut):
        agent.step(0)
    assert ordered.queue.answers([ordered.order_id]) == {}
    next_life = agent_of(api, tmp_path / "board")
    next_life.begin()
    assert ordered.answer().times is not None
    assert not next_life.step(0)


def test_an_agent_that_was_killed_in_mid_order_does_it_again(api: World, tmp_path: Path) -> None:
    ordered = put_order(api)

    def killed(*_: object) -> Outcome | None:
        raise KeyboardInterrupt

    agent = agent_of(api, tmp_path / "board", execute=killed)
    agent.begin()
    with pytest.raises(KeyboardInterrupt):
        agent.step(0)
    next_life = agent_of(api, tmp_path / "board")
    next_life.begin()
    assert next_life.step(0)
    assert ordered.answer().times is not None


def test_a_server_that_forgot_the_agent_is_registered_with_again(
    api: World, tmp_path: Path
) -> None:
    agent = agent_of(api, tmp_path / "board")
    agent.begin()
    agent.server.token = "older"
    with api.database.write() as session:
        row = session.get(DeviceAgentRow, "pi-1")
        session.delete(row)
    assert agent.step(0)
    put_order(api)
    assert agent.step(0)


def test_an_implausible_result_is_told_as_a_failure(api: World, tmp_path: Path) -> None:
    ordered = put_order(api)

    def lying(folder: Path, order: Order, memory: int, stop: threading.Event) -> Outcome:
        out = io.BytesIO()
        np.savez(out, candidate_ms=np.full(4, 1e7), baseline_ms=np.full(4, 1e7))
        return Outcome(times=out.getvalue())

    agent = agent_of(api, tmp_path / "board", execute=lying)
    agent.begin()
    agent.step(0)
    assert "the result was refused: The times sum up to" in str(ordered.answer().failure)


def test_a_drained_agent_ends(api: World, tmp_path: Path) -> None:
    agent = agent_of(api, tmp_path / "board")
    agent.begin()
    api.client.post("/api/v1/devices/agents/pi-1:drain")
    with pytest.raises(Drained):
        agent.step(0)


def test_a_board_unlike_its_pool_is_told_why(api: World, tmp_path: Path) -> None:
    agent_of(api, tmp_path / "board").begin()
    other = dataclasses.replace(OFFER, name="pi-2")
    body = other.body() | {"hardware": {"cpu": "another"}}
    with pytest.raises(Refused, match="'pi-2' has the CPU 'another'"):
        Server(api.client, "pi-2").register(body)


def test_nobody_answering_is_waited_for() -> None:
    pauses: list[float] = []
    calls = 0

    def call() -> str:
        nonlocal calls
        calls += 1
        if calls < 8:
            raise Unreachable("down")
        return "up"

    assert patiently(call, sleep=pauses.append) == "up"
    assert len(pauses) == 7
    assert all(0.35 <= pause <= 20.0 for pause in pauses)
    assert pauses[-1] > 10 * pauses[0]


def test_a_refused_connection_and_a_busy_server_are_nobody_answering(tmp_path: Path) -> None:
    def busy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"type": "/problems/database-unreachable"})

    for transport in (None, httpx.MockTransport(busy)):
        http = httpx.Client(base_url="http://127.0.0.1:9", transport=transport)
        with http, pytest.raises(Unreachable):
            Server(http, "pi-1").pull(0)


def sandbox_order(folder: Path, probe: bytes, **changes: object) -> Order:
    """Write an order's files and return it."""
    for part, data in (("candidate", conv_net(4)), ("baseline", conv_net(8)), ("probe", probe)):
        (folder / part).write_bytes(data)
    order = Order(
        id="tor_1",
        attempt="lea_1",
        device=DeviceSpec(name=DEVICE, runtime="onnxruntime", place="agent"),
        files={},
        compare="values",
        seed=1,
        width=0.5,
        max_seconds=0.3,
        lease_s=30.0,
    )
    return dataclasses.replace(order, **changes)  # type: ignore[arg-type]


def test_other_outputs_than_expected_are_refused_with_the_figures(tmp_path: Path) -> None:
    right, wrong = probe_of(conv_net(4)), probe_of(conv_net(6))
    order = sandbox_order(tmp_path, right)
    assert sandbox.check(order, conv_net(4), right) is None
    assert "1e-03 is allowed" in str(sandbox.check(order, conv_net(4), wrong))
    decisions = dataclasses.replace(order, compare="decisions")
    assert sandbox.check(decisions, conv_net(4), right) is None
    with np.load(io.BytesIO(right)) as arrays:
        out = io.BytesIO()
        np.savez(out, inputs=arrays["inputs"], expected=-arrays["expected"])
    assert "90% is required" in str(sandbox.check(decisions, conv_net(4), out.getvalue()))


@pytest.mark.slow
def test_a_process_that_eats_memory_is_ended(tmp_path: Path) -> None:
    order = sandbox_order(tmp_path, probe_of(conv_net(4)))
    outcome = sandbox.run(tmp_path, order, 64 << 20, threading.Event())
    assert outcome is not None
    assert outcome.times is None
    assert "64 MiB" in str(outcome.failure) or "Error" in str(outcome.failure)


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_and_one_that_is_not_wanted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = sandbox_order(tmp_path, probe_of(conv_net(4)), max_seconds=0.0)
    monkeypatch.setattr(sandbox, "GRACE_S", 1.0)
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    outcome = sandbox.run(tmp_path, order, 1 << 32, threading.Event())
    assert outcome == Outcome(failure="it took more than 1 s of wall time")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    stop = threading.Event()
    stop.set()
    started = time.monotonic()
    assert sandbox.run(tmp_path, order, 1 << 32, stop) is None
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_the_process_gets_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOPRESS_API_KEY", "ppk_secret")
    order = sandbox_order(tmp_path, probe_of(conv_net(4)))
    teller = tmp_path / "teller"
    teller.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\n")
    teller.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(teller))
    outcome = sandbox.run(tmp_path, order, 1 << 32, threading.Event())
    assert outcome is not None
    assert "ended with code 0" in str(outcome.failure)
    assert "ppk_secret" not in (tmp_path / "env").read_text()
