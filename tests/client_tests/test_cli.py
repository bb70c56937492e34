"""Commands against a server that answers as scripted: output, errors and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from paretopress import cli_doctor, cli_jobs, cli_register
from paretopress.cli import app
from paretopress.cli_errors import ExitCode
from paretopress.client import Client
from paretopress.errors import JobFileInvalid
from paretopress.jobfile import read_job
from tests.client_tests import examples

runner = CliRunner()
SERVER = "http://server"


class Server:
    """Answers by method and path; keeps what was posted."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.posted: list[Any] = []
        self.keys: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.headers["Content-Type"] == "application/json":
            self.posted.append(json.loads(request.content))
            self.keys.append(request.headers["Idempotency-Key"])
        path = request.url.path.removeprefix("/api/v1")
        status, body = self.answers.get((request.method, path), (404, {"title": f"no {path}"}))
        return httpx.Response(status, json=body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    answering = Server()

    def connect(url: str | None, api_key: str | None) -> Client:
        return Client(SERVER, transport=httpx.MockTransport(answering))

    for module in (cli_jobs, cli_register, cli_doctor):
        monkeypatch.setattr(module, "connect", connect)
    return answering


def test_submit_merges_file_and_options_and_options_win(server: Server, tmp_path: Path) -> None:
    server.answers["POST", "/jobs"] = (202, examples.job_data(state="QUEUED"))
    file = tmp_path / "job.toml"
    file.write_text(
        'name = "edge"\nmodel_id = "mdl_1"\ndataset_id = "dst_1"\n[budget]\ntrials = 60\n'
        '[[constraints]]\nmetric = "macs"\nat_most = 0.9\nrelative_to = "baseline"\n'
        '[[constraints]]\nmetric = "download_bytes"\nat_most = 300000\n'
    )
    command = ["submit", "--no-watch", "--trials", "8", "--max-macs-ratio", "0.5"]
    result = runner.invoke(app, [*command, "--max-accuracy-drop", "0.01", str(file)])
    assert result.exit_code == ExitCode.DONE, result.output
    assert result.output.strip() == "job_1"
    (body,) = server.posted
    assert body["budget"] == {"trials": 8}
    assert body["objectives"] == [{"metric": "top1", "direction": "maximize"}]
    assert body["constraints"] == [
        {"metric": "download_bytes", "at_most": 300000},
        {"metric": "macs", "at_most": 0.5, "relative_to": "baseline"},
        {"metric": "top1", "at_least": -0.01, "relative_to": "baseline_difference"},
    ]
    assert len(server.keys[0]) >= 16


def test_a_refused_job_is_told_field_by_field(server: Server) -> None:
    server.answers["POST", "/jobs"] = (
        422,
        {
            "type": "/problems/validation",
            "title": "The request is not valid",
            "detail": "Unknown device 'moon'",
            "errors": [{"pointer": "/constraints/0/device", "message": "known: local"}],
        },
    )
    result = runner.invoke(app, ["submit", "--model", "mdl_1", "--dataset", "dst_1"])
    assert result.exit_code == ExitCode.REFUSED
    assert "The request is not valid: Unknown device 'moon'" in result.stderr
    assert "/constraints/0/device: known: local" in result.stderr


def test_front_prints_the_table(server: Server) -> None:
    server.answers["GET", "/jobs/job_1/front"] = (200, examples.front_data())
    server.answers["GET", "/jobs/job_1"] = (200, examples.job_data())
    result = runner.invoke(app, ["front", "job_1"])
    assert result.exit_code == ExitCode.DONE
    assert "97.00 %" in result.output


def test_front_as_json_is_the_servers_answer(server: Server) -> None:
    server.answers["GET", "/jobs/job_1/front"] = (200, examples.front_data())
    result = runner.invoke(app, ["front", "job_1", "--json"])
    assert json.loads(result.output) == examples.front_data()


def test_watching_an_infeasible_job_has_its_own_exit_code(server: Server) -> None:
    ended = examples.job_data(state="SUCCEEDED", outcome="infeasible")
    last = {"seq": 1, "kind": "job.succeeded", "payload": {"state": "SUCCEEDED"}}
    server.answers["GET", "/jobs/job_1"] = (200, ended)
    server.answers["GET", "/jobs/job_1/events"] = (200, {"data": [last]})
    nearest = [examples.member(3, 0.9, 0.7)]
    server.answers["GET", "/jobs/job_1/front"] = (
        200,
        examples.front_data(members=[], nearest=nearest),
    )
    result = runner.invoke(app, ["watch", "job_1"])
    assert result.exit_code == ExitCode.INFEASIBLE
    assert "No point met every bound" in result.stdout


def test_watching_a_failed_job_says_why(server: Server) -> None:
    problem = {"title": "failed", "detail": "The original model could not be measured"}
    ended = examples.job_data(state="FAILED", outcome="failed", problem=problem)
    last = {"seq": 1, "kind": "job.failed", "payload": {"state": "FAILED"}}
    server.answers["GET", "/jobs/job_1"] = (200, ended)
    server.answers["GET", "/jobs/job_1/events"] = (200, {"data": [last]})
    server.answers["GET", "/jobs/job_1/front"] = (200, examples.front_data(members=[]))
    result = runner.invoke(app, ["watch", "job_1"])
    assert result.exit_code == ExitCode.JOB_ENDED
    assert "The original model could not be measured" in result.stderr


def test_pulling_a_member_that_is_not_there_names_the_limit(server: Server) -> None:
    server.answers["GET", "/jobs/job_1/front"] = (200, examples.front_data())
    result = runner.invoke(app, ["pull", "job_1", "--member", "7"])
    assert result.exit_code == ExitCode.REFUSED
    assert "no member 7; its front has 2 members" in result.stderr


def test_a_rejected_model_is_told_with_its_problem(server: Server, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"x")
    problem = {"title": "The model cannot be accepted", "detail": "Key 'fc.weight' is missing"}
    server.answers["POST", "/models"] = (202, {"id": "mdl_1", "state": "SCANNING"})
    server.answers["GET", "/models/mdl_1"] = (
        200,
        {"id": "mdl_1", "state": "REJECTED", "problem": problem},
    )
    command = ["add-model", str(weights), "--architecture", "resnet18"]
    result = runner.invoke(app, command)
    assert result.exit_code == ExitCode.REFUSED
    assert "Key 'fc.weight' is missing" in result.stderr


def test_no_server_has_its_own_exit_code() -> None:
    result = runner.invoke(app, ["front", "job_1", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "paretopress serve" in result.stderr


def test_doctor_reports_this_machine(server: Server, tmp_path: Path) -> None:
    server.answers["GET", "/devices"] = (200, {"data": [{"name": "local/onnxruntime"}]})
    result = runner.invoke(app, ["doctor", "--data", str(tmp_path / "not" / "there")])
    assert "local/onnxruntime" in result.output
    assert "Python" in result.output
    assert result.exit_code == ExitCode.DONE


@pytest.mark.parametrize("content", ["{", "[1]", '"job"'])
def test_a_job_file_that_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "job.json"
    file.write_text(content)
    with pytest.raises(JobFileInvalid, match=r"job\.json"):
        read_job(file)


def test_usage_errors_are_the_shells_usual_code() -> None:
    assert runner.invoke(app, ["front"]).exit_code == ExitCode.USAGE
