"""A small API with what its tests store: a surveyed model, a scanned dataset, a finished job."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi.testclient import TestClient

from compression.artifact import Digest, ModelArtifact
from compression.cost import CostTable
from compression.layer_cost import LayerCost
from compression.plan import Plan
from compression.site import Site
from compression.surveyed import Survey
from search.agent import Evaluate
from search.measurement import Measured, Measurement, Reading, Split
from search.trial import BASELINE_AGENT, Fidelity, Trial
from service.api.deps import Services
from service.app import create_app
from service.db import datasets, jobs, lease, models
from service.db.ledger import SqlLedger
from service.settings import Settings
from workers.executor import Finished, Work
from workers.job import DatasetArtifact

DEVICE = "local/onnxruntime"

# Two convolutions on 8 x 8 pixels, then a linear layer: 3 -> 32 -> 64 channels -> 10 classes.
LAYERS = (
    LayerCost(
        name="first",
        op="conv",
        in_channels=3,
        out_channels=32,
        kernel=9,
        positions=64,
        out_ties=(("first", 1),),
    ),
    LayerCost(
        name="second",
        op="conv",
        in_channels=32,
        out_channels=64,
        kernel=9,
        positions=64,
        in_ties=(("first", 1),),
        out_ties=(("second", 1),),
    ),
    LayerCost(
        name="head",
        op="linear",
        in_channels=64,
        out_channels=10,
        bias=True,
        in_ties=(("second", 1),),
    ),
)
SURVEY = Survey(
    sites=(
        Site(name="first", kind="channels", channels=32, macs=1, params=1, members=("first",)),
        Site(name="second", kind="channels", channels=64, macs=1, params=1, members=("second",)),
        Site(
            name="head",
            kind="channels",
            channels=10,
            macs=640,
            params=650,
            members=("head",),
            frozen="its channels are the classes",
        ),
        Site(name="model", kind="model", channels=0, macs=0, params=0),
    ),
    costs=CostTable(LAYERS, {"first": 32, "second": 64}),
    summary={"layers": 3, "num_classes": 10},
)
# By hand: 64 positions x 9 x (3 x 32 + 32 x 64) + 640.
DENSE_MACS = 64 * 9 * (3 * 32 + 32 * 64) + 640
DENSE_PARAMS = 9 * (3 * 32 + 32 * 64) + 650
# channel_multiple 8 and min_keep_ratio 1/8 leave at least 8 of 32 and 8 of 64 channels.
SMALLEST_MACS = 64 * 9 * (3 * 8 + 8 * 8) + 80

MODEL = ModelArtifact(
    weights=Digest("1" * 64),
    format="safetensors",
    architecture="digits_cnn",
    input_shape=(3, 8, 8),
    num_classes=10,
)
DATASET = DatasetArtifact(data=Digest("2" * 64), format="npz")


class World:
    """An API process under test and the parts behind it."""

    def __init__(self, client: TestClient, services: Services) -> None:
        self.client = client
        self.services = services
        self.database = services.database

    def store_model(self, artifact: ModelArtifact = MODEL, *, ready: bool = True) -> str:
        """Store a model, scanned unless `ready` is False; return its id."""
        summary = {"num_classes": 10, "forward_ms_per_image": 0.5, "readings": []}
        with self.database.write() as session:
            stored = models.create(session, name="small", artifact=artifact)
            if ready:
                models.set_ready(session, stored.id, survey=SURVEY.to_json(), summary=summary)
        return stored.id

    def store_dataset(self, summary: Mapping[str, Any] | None = None, *, ready: bool = True) -> str:
        """Store a dataset, scanned unless `ready` is False; return its id."""
        with self.database.write() as session:
            stored = datasets.create(session, name="pixels", artifact=DATASET)
            if ready:
                datasets.set_ready(session, stored.id, summary=dict(summary or {}))
        return stored.id

    def job_body(self, **changes: Any) -> dict[str, Any]:
        """Return a job that can be posted, on a new model and dataset unless they are given."""
        body: dict[str, Any] = {
            "name": "edge",
            "objectives": [{"metric": "top1"}],
            "constraints": [
                {"metric": "macs", "at_most": 0.5, "relative_to": "baseline"},
                {
                    "metric": "latency_ms",
                    "device": DEVICE,
                    "at_most": 0.6,
                    "relative_to": "baseline",
                },
            ],
            "agent": {"name": "random"},
            "recovery": {"epochs": 0},
            "budget": {"trials": 8},
        }
        body |= changes
        body.setdefault("model_id", None)
        body.setdefault("dataset_id", None)
        body["model_id"] = body["model_id"] or self.store_model()
        body["dataset_id"] = body["dataset_id"] or self.store_dataset()
        return body

    def post_job(self, **changes: Any) -> str:
        """Post a job and return its id."""
        answer = self.client.post("/api/v1/jobs", json=self.job_body(**changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def ledger(self, owner: str = "conductor") -> SqlLedger:
        """Claim the oldest queued job and return its ledger."""
        with self.database.write() as session:
            claim = lease.claim_job(session, owner, 600.0)
        assert claim is not None
        return SqlLedger(self.database, claim.job_id, owner, claim.epoch, 600.0)

    def move(self, job_id: str, *states: Any) -> None:
        """Move a job through states."""
        with self.database.write() as session:
            for state in states:
                jobs.transition(session, job_id, state, "test")


@contextmanager
def world(folder: Path, **settings: Any) -> Iterator[World]:
    """Run the API on a folder of its own."""
    given = {"event_poll_s": 0.02, "event_ping_s": 0.1, **settings}
    app = create_app(Settings(data_dir=folder, **given))
    # A failure inside must come out as the answer that users would see.
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield World(client, app.state.services)


def measured(
    ledger: SqlLedger,
    plan: Plan,
    *,
    top1: float,
    latency_ms: float,
    fidelity: Fidelity = Fidelity.PROXY,
    agent: str = "random",
    artifacts: Mapping[str, Digest] | None = None,
) -> Trial:
    """Propose, start and record one measured trial."""
    cost = SURVEY.costs.cost(plan)
    split: Split = "test" if fidelity is Fidelity.CONFIRMED else "search"
    readings = (
        Reading(metric="top1", value=top1, low=top1 - 0.01, high=top1 + 0.01, n=500, split=split),
        Reading(
            metric="latency_ms",
            value=latency_ms,
            low=latency_ms,
            high=latency_ms,
            n=100,
            device=DEVICE,
            statistic="p50",
        ),
        Reading(
            metric="latency_ms",
            value=2 * latency_ms,
            low=2 * latency_ms,
            high=2 * latency_ms,
            n=100,
            device=DEVICE,
            statistic="p95",
        ),
        Reading.exact("macs", float(cost.macs), float(DENSE_MACS)),
    )
    (trial,) = ledger.propose([Evaluate(plan=plan, fidelity=fidelity)], agent=agent, snapshot=None)
    attempt = ledger.start(trial)
    recorded = ledger.record(
        Finished(
            work=Work(trial=trial, attempt=attempt),
            outcome=Measured(Measurement(readings)),
            artifacts=dict(artifacts or {}),
            seconds={"apply": 0.1},
        )
    )
    assert recorded is not None
    return recorded


def dense(ledger: SqlLedger, fidelity: Fidelity = Fidelity.PROXY) -> Trial:
    """Record the dense model's measurement: 90 % at 1 ms."""
    return measured(
        ledger, Plan(), top1=0.9, latency_ms=1.0, fidelity=fidelity, agent=BASELINE_AGENT
    )


def spec_part(**spec: Any) -> dict[str, str]:
    """Return the form field of a multipart body."""
    return {"spec": json.dumps(spec)}


def npz(**arrays: Any) -> bytes:
    """Return arrays as an .npz file."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def assert_problem(
    answer: httpx.Response, status: int, slug: str, *pointers: str
) -> dict[str, Any]:
    """Check the shape of a problem document and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"/problems/{slug}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["instance"] == answer.request.url.path
    assert isinstance(document["retryable"], bool)
    assert document["request_id"]
    found = [fault["pointer"] for fault in document["errors"]]
    assert all(fault["message"] for fault in document["errors"])
    assert set(pointers) <= set(found), found
    return document
