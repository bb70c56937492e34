"""The client against the real API in this process: every shape it reads is the server's own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from paretopress import ApiProblem, Client
from paretopress.jobs import Job
from paretopress.progress import show_until_end
from paretopress.tables import front_table
from service.app import create_app
from service.db import datasets, models
from service.db.session import Database
from service.settings import Settings
from tests.client_tests.stored_job import CHECKPOINT, StoredJob, survey
from workers.open_store import open_store
from workers.store import ArtifactStore

URL = "http://127.0.0.1"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", event_poll_s=0.02)


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with TestClient(create_app(settings), base_url=URL) as server, Client(URL) as given:
        given.close()
        yield Client(URL, transport=server._transport)


@pytest.fixture
def database(settings: Settings, client: Client) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return open_store(settings.store_url)


@pytest.fixture
def ended(database: Database, store: ArtifactStore, client: Client) -> Job:
    stored = StoredJob(database, store)
    stored.start()
    stored.search(10)
    stored.succeed()
    return client.job(stored.id)


def test_a_job_is_read_from_its_first_event_to_its_front(ended: Job) -> None:
    events = list(ended.watch())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].kind == "job.succeeded"
    assert ended.info().outcome == "front_found"
    assert ended.info().progress.trials == 10
    front = ended.front()
    assert not front.provisional
    assert len(front.members) == 2
    latency = front.members[0].readings.get("latency_ms", "local/onnxruntime", "p50")
    assert latency is not None
    assert latency.ratio is not None
    assert latency.ratio.value <= 0.7


def test_events_may_be_asked_for_from_the_middle_and_after_the_end(ended: Job) -> None:
    every = [event.seq for event in ended.watch()]
    assert [event.seq for event in ended.watch(after=every[-3])] == every[-2:]
    assert list(ended.watch(after=every[-1])) == []


def test_trials_come_page_by_page_with_their_standing(ended: Job) -> None:
    trials = list(ended.trials())
    assert [trial.number for trial in trials] == list(range(11))
    assert {trial.feasible for trial in trials[1:]} == {True, False}
    assert all(trial.readings.get("top1") for trial in trials)


def test_a_running_job_has_a_provisional_front(
    database: Database, store: ArtifactStore, client: Client, tmp_path: Path
) -> None:
    stored = StoredJob(database, store)
    stored.start()
    stored.search(8)
    job = client.job(stored.id)
    front = job.front()
    assert front.provisional
    assert front.members
    with pytest.raises(LookupError, match="state now: RUNNING"):
        job.pull(tmp_path / "out")
    assert job.cancel().state == "CANCELLING"
    assert job.cancel().state == "CANCELLING"


def test_progress_and_table_show_what_the_server_says(ended: Job) -> None:
    out = io.StringIO()
    console = Console(file=out, width=180)
    info = show_until_end(ended, console=console)
    console.print(front_table(ended.front(), info))
    assert "10/12 trials" in out.getvalue()
    assert "SUCCEEDED (front_found)" in out.getvalue()
    assert "latency p50 on local/onnxruntime <= 0.7 x baseline" in out.getvalue()


def test_checkpoints_are_pulled_and_checked(ended: Job, tmp_path: Path) -> None:
    folders = ended.pull_all(tmp_path / "out")
    assert [folder.name for folder in folders] == ["member-0", "member-1"]
    for folder in folders:
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == CHECKPOINT
    with pytest.raises(LookupError, match="no member 2; its front has 2 members"):
        ended.pull(tmp_path / "more", 2)


def one_tensor() -> bytes:
    """A safetensors file of one number."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def test_models_and_datasets_are_registered_and_a_job_is_posted_once(
    client: Client, database: Database, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(one_tensor())
    model = client.register_model(
        name="net",
        architecture="cifar_resnet20",
        weights=weights,
        input_shape=(3, 32, 32),
        preprocessing={"layout": "NCHW", "scale": 255, "mean": [0.5] * 3, "std": [0.25] * 3},
        wait=False,
    )
    assert model.state == "SCANNING"
    archive = tmp_path / "d.npz"
    images = np.zeros((400, 3, 32, 32), np.uint8)
    np.savez(archive, x=images, y=np.arange(400) % 10)
    dataset = client.register_dataset(
        name="zeros", format="npz", data=archive, splits={"train": 0.4, "search": 0.35}, wait=False
    )
    with database.write() as session:
        models.set_ready(session, model.id, survey=survey().to_json(), summary={})
        datasets.set_ready(session, dataset.id, {"rows": 400, "num_classes": 10})
    job = {
        "model_id": model.id,
        "dataset_id": dataset.id,
        "objectives": [{"metric": "top1"}],
        "constraints": [{"metric": "macs", "at_most": 0.5, "relative_to": "baseline"}],
        "budget": {"trials": 4},
    }
    assert int(client.dry_run(job)["space"]["size"]) > 1
    assert list(client.jobs()) == []
    first = client.submit(job, name="once", idempotency_key="abc")
    again = client.submit(job, name="once", idempotency_key="abc")
    assert first.id == again.id
    assert [info.name for info in client.jobs()] == ["once"]


def test_a_rejected_model_raises_its_problem(client: Client, database: Database) -> None:
    model = client.register_model(
        name="net",
        architecture="cifar_resnet20",
        weights=one_tensor(),
        input_shape=(3, 32, 32),
        wait=False,
    )
    with database.write() as session:
        models.set_rejected(session, model.id, "Key 'fc.weight' is missing")
    with pytest.raises(ApiProblem, match=r"Key 'fc\.weight' is missing"):
        client._scanned("models", model)


def test_a_wrong_job_is_told_field_by_field(client: Client) -> None:
    with pytest.raises(ApiProblem) as caught:
        client.submit({"model_id": "mdl_x", "dataset_id": "dst_x", "objectives": []})
    pointers = {item.pointer for item in caught.value.errors}
    assert "/objectives" in pointers
    assert "/budget" in pointers


def test_an_unknown_job_is_not_found(client: Client) -> None:
    with pytest.raises(ApiProblem) as caught:
        client.job("job_nothing").info()
    assert (caught.value.status, caught.value.slug) == (404, "not-found")
