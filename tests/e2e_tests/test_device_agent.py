"""Boards in processes of their own, over a real network that is cut, killed with -9 in mid-order.

`PARETOPRESS_CUT_S` says for how many seconds the link is down.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from paretopress import Client
from tests.e2e_tests.server import Server, descendants, serving, wait_for
from tests.e2e_tests.test_kill import register

pytestmark = [pytest.mark.ray, pytest.mark.slow]

POOL = "kitchen"
DEVICE = f"board/{POOL}"
CUT_S = float(os.environ.get("PARETOPRESS_CUT_S", "8"))
JOB_S = 1500.0
LATENCY = "latency_ms"

SERVER_IP, BOARD_IP = "10.213.7.1", "10.213.7.2"


class Board:
    """An agent's process; what it remembers is in a folder that outlives it."""

    def __init__(self, server: Server, name: str, folder: Path, prefix: Sequence[str] = ()) -> None:
        self._command = [*prefix, sys.executable, "-m", "workers.device_agent"]
        self._command += ["--server", server.url, "--name", name, "--pool", POOL]
        self._command += ["--state", str(folder / name)]
        self._environment = {**os.environ, "PARETOPRESS_API_KEY": server.api_key or ""}
        self._log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        """Begin a life."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def kill(self) -> None:
        """Kill -9 the agent alone: what it started must end by itself."""
        below = descendants(self.process.pid)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        wait_for(lambda: not any(_lives(pid) for pid in below), 20, "a timing outlived its agent")

    def is_timing(self) -> bool:
        """Whether a timing process runs."""
        return bool(descendants(self.process.pid))

    def stop(self) -> None:
        """End everything."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def submit(client: Client) -> Any:
    model_id, dataset_id = register(client)
    bound = {"metric": LATENCY, "at_most": 1.5, "relative_to": "baseline"}
    return client.submit(
        name="boards",
        model_id=model_id,
        dataset_id=dataset_id,
        objectives=[{"metric": "top1"}],
        constraints=[{**bound, "device": DEVICE}, {**bound, "device": "local/onnxruntime"}],
        methods={"allow": ["prune_channels"]},
        agent={"name": "random"},
        recovery={"epochs": 0.5, "finalists": 2, "race": "asha", "augment": False},
        budget={"trials": 3},
        memory=False,
        seed=5,
    )


def registered(client: Client) -> list[str]:
    devices = {device["name"]: device for device in client.get("/devices")["data"]}
    return sorted(agent["name"] for agent in devices.get(DEVICE, {}).get("agents", []))


def check_nothing_is_lost_or_doubled(folder: Path, client: Client, job_id: str) -> None:
    """Each measured trial has the times of one answered order, and no order is open."""
    database = sqlite3.connect(folder / "paretopress.db")
    orders = database.execute(
        "SELECT trial_id, state FROM timing_orders WHERE job_id = ?", (job_id,)
    ).fetchall()
    measured = database.execute(
        "SELECT id FROM trials WHERE job_id = ? AND state = 'MEASURED'", (job_id,)
    ).fetchall()
    readings = database.execute(
        "SELECT readings.trial_id FROM readings JOIN trials ON trials.id = readings.trial_id"
        " WHERE job_id = ? AND metric = ? AND device = ? AND statistic = 'p50'",
        (job_id, LATENCY, DEVICE),
    ).fetchall()
    database.close()
    assert {state for _, state in orders} == {"DONE"}, orders
    once = {trial: 1 for (trial,) in measured}
    assert len(once) >= 5
    assert Counter(trial for (trial,) in readings) == once
    assert Counter(trial for trial, _ in orders) == once
    for member in client.job(job_id).front().members:
        found = [r for r in member.readings.all if (r.metric, r.device) == (LATENCY, DEVICE)]
        assert found
        assert all(r.ratio is not None for r in found if r.statistic == "p50")
        check_report(client.job(job_id).pull(folder.parent / member.trial_id, member), member)


def check_report(files: Sequence[Path], member: Any) -> None:
    """The checkpoint's own report has what the front has of the board, apart from the rest."""
    texts = {path.name: path.read_text() for path in files if path.suffix in (".json", ".md")}
    assert f"### {DEVICE}" in texts["README.md"].partition("## On boards")[2]
    report = json.loads(texts["report.json"])
    (board,) = report["boards"]
    assert (board["device"], board["runtime"]) == (DEVICE, "onnxruntime")
    assert not any(DEVICE in row["conditions"] for row in report["metrics"])
    told = {(row["metric"], row["conditions"]): row for row in board["metrics"]}
    for reading in (r for r in member.readings.all if r.device == DEVICE):
        row = told.pop((reading.metric, f"{DEVICE}, {reading.statistic}"))
        assert row["result"]["value"] == reading.value
        assert row["change"]["value"] == reading.ratio.value
    assert told == {}


def measured_trials(job: Any) -> int:
    return sum(trial.state == "MEASURED" for trial in job.trials())


def test_an_agent_and_then_the_server_are_killed_in_mid_order(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (server, client), contextlib.ExitStack() as stack:
        first = Board(server, "first", tmp_path)
        stack.callback(first.stop)
        wait_for(lambda: registered(client) == ["first"], 60, "no agent registered")
        job = submit(client)
        wait_for(first.is_timing, 300, "nothing was ordered")
        first.kill()
        second = Board(server, "second", tmp_path)
        stack.callback(second.stop)
        wait_for(lambda: measured_trials(job) >= 2, 600, "nobody took over")
        wait_for(second.is_timing, 300, "no order was at work when the server was killed")
        assert server.kill("-m service.api_process") == 1
        assert server.kill("-m service.conductor") == 1
        server.wait_until_ready()
        first.start()
        info = job.wait(progress=False, timeout_s=JOB_S)
        assert (info.state, info.outcome) == ("SUCCEEDED", "front_found")
        check_nothing_is_lost_or_doubled(tmp_path / "data", client, job.id)
        drained = subprocess.run(
            [sys.executable, "-m", "paretopress", "device", "drain", "second"],
            env={**os.environ, "PARETOPRESS_URL": server.url},
            capture_output=True,
            text=True,
            check=True,
        )
        assert drained.stdout.strip() == "second DRAINING"
        assert second.process.wait(60) == 0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_namespaces() -> Iterator[tuple[list[str], str]]:
    """Yield how commands are run in a second network namespace, and the name of its link."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces want root and the command `ip`")
    name, here, there = f"pp{os.getpid()}", f"pph{os.getpid() % 10**6}", f"ppt{os.getpid() % 10**6}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr}")
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("address", "add", f"{SERVER_IP}/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "address", "add", f"{BOARD_IP}/30", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        yield ["ip", "netns", "exec", name], there
    finally:
        subprocess.run(["ip", "link", "delete", here], check=False, capture_output=True)
        ip("netns", "delete", name)


@pytest.mark.benchmark  # Wants root and minutes: its command is in docs/evidence.md.
def test_a_cut_network_and_a_killed_agent_lose_and_double_nothing(tmp_path: Path) -> None:
    with (
        two_namespaces() as (inside, link),
        serving(tmp_path / "data", host=SERVER_IP) as (server, client),
        contextlib.ExitStack() as stack,
    ):
        board = Board(server, "pi", tmp_path, inside)
        stack.callback(board.stop)
        wait_for(lambda: registered(client) == ["pi"], 60, "the agent did not register")
        job = submit(client)
        wait_for(lambda: measured_trials(job) >= 1, 600, "nothing was measured before the cut")
        wait_for(board.is_timing, 300, "no order was at work at the cut")
        namespace = inside[-1]
        ip("-n", namespace, "link", "set", link, "down")
        time.sleep(CUT_S)
        ip("-n", namespace, "link", "set", link, "up")
        before = measured_trials(job)
        wait_for(lambda: measured_trials(job) > before, 600, "nothing went on after the cut")
        wait_for(board.is_timing, 600, "no order was at work at the kill")
        board.kill()
        board.start()
        info = job.wait(progress=False, timeout_s=JOB_S)
        assert (info.state, info.outcome) == ("SUCCEEDED", "front_found")
        check_nothing_is_lost_or_doubled(tmp_path / "data", client, job.id)
