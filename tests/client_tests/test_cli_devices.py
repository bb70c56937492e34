"""`paretopress device ...` against a server that answers as scripted."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

import httpx
import pytest
from typer.testing import CliRunner

from paretopress import cli_devices
from paretopress.cli import app
from paretopress.client import Client

runner = CliRunner()

LOCAL = {"name": "local/onnxruntime", "runtime": "onnxruntime", "threads": 1, "place": "local"}
BOARD = {
    "name": "board/kitchen",
    "runtime": "onnxruntime",
    "threads": 2,
    "place": "agent",
    "agents": [{"name": "pi-1", "state": "ACTIVE", "seen_at": "2030-01-01T00:00:00Z"}],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        found.append(f"{request.method} {request.url.path}")
        if request.method == "POST":
            return httpx.Response(200, json={"name": "pi-1", "state": "DRAINING"})
        return httpx.Response(200, json={"data": [LOCAL, BOARD]})

    def connect(url: str | None, api_key: str | None) -> Client:
        return Client("http://server", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(cli_devices, "connect", connect)
    return found


def test_devices_are_listed_with_their_agents(asked: list[str]) -> None:
    result = runner.invoke(app, ["device", "list"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert asked == ["GET /api/v1/devices"]
    # A terminal's width may break lines.
    shown = " ".join(result.stdout.split())
    for text in ("local/onnxruntime", "board/kitchen", "pi-1 active, seen 2030-01-01"):
        assert text in shown


def test_an_agent_is_drained(asked: list[str]) -> None:
    result = runner.invoke(app, ["device", "drain", "pi-1"])
    assert (result.exit_code, result.stdout.strip()) == (0, "pi-1 DRAINING")
    assert asked == ["POST /api/v1/devices/agents/pi-1:drain"]


def test_run_becomes_the_agent_and_keeps_the_key_out_of_its_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Sequence[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    monkeypatch.setenv("PARETOPRESS_API_KEY", "")
    options = ["--server", "http://server:8080", "--name", "pi-1", "--pool", "kitchen"]
    options += ["--threads", "2", "--api-key", "ppk_secret"]
    result = runner.invoke(app, ["device", "run", *options])
    assert result.exit_code == 0, result.output
    (command,) = started
    assert command[:3] == [sys.executable, "-m", "workers.device_agent"]
    assert "ppk_secret" not in command
    assert os.environ["PARETOPRESS_API_KEY"] == "ppk_secret"
    pairs = dict(zip(command[3::2], command[4::2], strict=True))
    assert pairs == {
        "--server": "http://server:8080",
        "--runtime": "onnxruntime",
        "--threads": "2",
        "--memory-mib": "4096",
        "--name": "pi-1",
        "--pool": "kitchen",
    }


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = runner.invoke(app, ["device", "run"])
    assert result.exit_code == 1
    assert "pip install 'paretopress[device]'" in result.stderr
