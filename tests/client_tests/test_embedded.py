"""The embedded server's command, its failures, and that nothing of it stays behind."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

import paretopress
from paretopress import ApiProblem, embedded
from paretopress.embedded import EmbeddedServer, free_port, serve_command
from paretopress.errors import EmbeddedServerFailed
from tests.e2e_tests.server import descendants, processes


def test_the_command_names_everything_the_server_needs(tmp_path: Path) -> None:
    command = serve_command(
        host="127.0.0.1", port=4242, data=tmp_path, code=tmp_path / "code", parent=7
    )
    assert command[:3] == [sys.executable, "-m", "service.serve"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert options == {
        "--host": "127.0.0.1",
        "--port": "4242",
        "--data": str(tmp_path),
        "--code": str(tmp_path / "code"),
        "--parent": "7",
    }


def test_without_the_server_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "SERVER_PARTS", ("fastapi", "no_such_package"))
    with pytest.raises(EmbeddedServerFailed, match=r"no_such_package.*paretopress\[server\]"):
        serve_command(host="127.0.0.1", port=1, data=tmp_path)


def test_a_free_port_can_be_bound() -> None:
    port = free_port()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        assert probe.getsockname()[1] == port


def test_a_server_that_ends_early_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "not" / "a" / "port"
    server = EmbeddedServer(data=tmp_path / "data", code=code, port=1)

    def refused(**_: object) -> list[str]:
        # The real program with an argument that it refuses.
        return [sys.executable, "-m", "service.serve", "--port", "eighty"]

    monkeypatch.setattr(embedded, "serve_command", refused)
    with pytest.raises(EmbeddedServerFailed, match=r"(?s)ended with status 2.*invalid int value"):
        server.start()
    assert server.pid is None


def alive(pids: set[int]) -> set[int]:
    running = set(processes())
    return {pid for pid in pids if pid in running}


OWN_CODE = """
from torch import nn

def build(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )
"""


@pytest.mark.slow
def test_a_users_own_network_is_registered_and_understood(tmp_path: Path) -> None:
    (tmp_path / "my_networks.py").write_text(OWN_CODE)
    with paretopress.local(code=tmp_path, data=tmp_path / "data") as client:
        model = client.register_model(
            name="mine",
            architecture={"python": "my_networks:build"},
            options={"width": 32},
            input_shape=(1, 8, 8),
        )
        assert model.state == "READY"
        digits = client.register_dataset(name="digits", format="builtin", source="digits")
        assert digits.state == "READY"
        preview = client.dry_run(
            model_id=model.id,
            dataset_id=digits.id,
            objectives=[{"metric": "top1"}],
            constraints=[{"metric": "macs", "at_most": 0.5, "relative_to": "baseline"}],
            budget={"trials": 4},
        )
        assert int(preview["space"]["size"]) >= 4
        with pytest.raises(ApiProblem, match=r"mine was rejected: .*no_such_option"):
            client.register_model(
                name="mine",
                architecture={"python": "my_networks:build"},
                options={"no_such_option": 1},
                input_shape=(1, 8, 8),
            )


@pytest.mark.slow
def test_a_local_server_answers_and_leaves_nothing_behind() -> None:
    of_other_tests = descendants(os.getpid())
    with paretopress.local() as client:
        assert client.get("/devices")["data"][0]["name"] == "local/onnxruntime"
        assert list(client.jobs()) == []
        ours = descendants(os.getpid()) - of_other_tests
        folders = {c.partition("--data ")[2].split()[0] for c in processes("service.serve").values()
                   if "--data " in c and f"--parent {os.getpid()}" in c}  # fmt: skip
        assert len(folders) == 1
        assert len(ours) >= 3
    deadline = time.monotonic() + 10
    while alive(ours) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(ours) == set()
    assert not any(Path(folder).exists() for folder in folders)
