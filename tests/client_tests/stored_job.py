"""A job in a real database, driven trial by trial through the real ledger.

Its network is made up (`tests.synthetic.Net`): accuracy and latency are formulas of the plan. What
API, client and dashboard make of the rows is real.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile

import numpy as np

from compression.artifact import Digest, ModelArtifact
from compression.methods import Methods
from compression.plan import Plan
from compression.site import MODEL_SITE, Site
from compression.surveyed import Survey
from search.agent import Evaluate
from search.budget import Budget
from search.device import LOCAL_DEVICES
from search.measurement import Measured, Measurement
from search.objective import Constraint, Objective
from search.problem import Problem
from search.trial import BASELINE_AGENT, Fidelity, Trial
from service.db import artifacts, datasets, fronts, jobs, lease, models
from service.db.columns import new_id
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.job_state import JobOutcome, JobState
from tests.synthetic import Net
from workers.executor import Finished, Progress, Work
from workers.job import DatasetArtifact, JobSpec, Recovery, Scoring
from workers.store import ArtifactStore

NET = Net(d=4)
DEVICE = LOCAL_DEVICES[0]
OBJECTIVES = (
    Objective(metric="top1", direction="maximize"),
    Objective(metric="latency_ms", direction="minimize", device=DEVICE.name, statistic="p50"),
)
CONSTRAINTS = (
    Constraint(
        metric="latency_ms",
        at_most=0.7,
        relative_to="baseline",
        device=DEVICE.name,
        statistic="p50",
    ),
    Constraint(metric="top1", at_least=-0.2, relative_to="baseline_difference"),
)
CHECKPOINT = {"model.py": b"def build():\n    return None\n", "model.onnx": bytes(range(256)) * 64}


def survey() -> Survey:
    sites = [
        Site(name=f"b{i}.conv1", kind="channels", channels=width, macs=1, params=1)
        for i, width in enumerate(NET.widths)
    ]
    sites.append(Site(name=MODEL_SITE, kind="model", channels=0, macs=1, params=1))
    return Survey(sites=tuple(sites), costs=NET.costs, summary={"num_classes": 10})


def measurement(plan: Plan) -> Measurement:
    found = NET.measurement(plan)
    return Measurement(
        tuple(dataclasses.replace(r, device=DEVICE.name) if r.device else r for r in found.readings)
    )


def checkpoint_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in CHECKPOINT.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


class StoredJob:
    """A QUEUED job on a READY model and dataset, and what a conductor would write about it."""

    def __init__(self, database: Database, store: ArtifactStore, *, name: str = "edge") -> None:
        self.database = database
        self.store = store
        self.rng = np.random.default_rng(7)
        self.id = new_id("job")
        model = ModelArtifact(
            weights=Digest(hashlib.sha256(b"weights").hexdigest()),
            format="safetensors",
            architecture="cifar_resnet20",
            input_shape=(3, 32, 32),
            num_classes=10,
        )
        dataset = DatasetArtifact(data=None, format="builtin", name="digits")
        self.spec = JobSpec(
            job_id=self.id,
            name=name,
            model=model,
            dataset=dataset,
            objectives=OBJECTIVES,
            constraints=CONSTRAINTS,
            methods=Methods(channel_multiple=NET.multiple),
            devices=(DEVICE,),
            recovery=Recovery(epochs=0.0),
            scoring=Scoring(),
            budget=Budget(trials=12),
            agent="random",
            agent_options={},
        )
        with database.write() as session:
            model_id = models.create(session, name="resnet20", artifact=model).id
            models.set_ready(session, model_id, survey=survey().to_json(), summary={})
            dataset_id = datasets.create(session, name="digits", artifact=dataset).id
            datasets.set_ready(session, dataset_id, {"rows": 1797})
            jobs.create(
                session,
                name=name,
                model_id=model_id,
                dataset_id=dataset_id,
                spec=self.spec.to_json(),
                job_id=self.id,
            )

    def start(self) -> None:
        """Claim the job and measure its baseline."""
        with self.database.write() as session:
            claim = lease.claim_job(session, "test", 600.0)
            assert claim is not None
            assert claim.job_id == self.id
            jobs.transition(session, self.id, JobState.RUNNING, "claimed")
        self.ledger = SqlLedger(self.database, self.id, "test", claim.epoch, 600.0)
        self.evaluate(Plan(), agent=BASELINE_AGENT)

    def evaluate(self, plan: Plan, agent: str = "random", fidelity: str = "proxy") -> Trial:
        """Run one trial from proposal to outcome."""
        request = Evaluate(plan=plan, fidelity=Fidelity(fidelity))
        (trial,) = self.ledger.propose([request], agent=agent, snapshot=None)
        work = Work(trial=trial, attempt=self.ledger.start(trial))
        progress = Progress(work=work, data={"step": "recover", "done": 1, "of": 2})
        self.ledger.event("trial.progress", {"trial_id": trial.id, **progress.data})
        finished = Finished(work=work, outcome=Measured(measurement(plan)), seconds={"time": 0.1})
        recorded = self.ledger.record(finished)
        assert recorded is not None
        return recorded

    def search(self, count: int) -> list[Trial]:
        """Run random trials."""
        points = (NET.space.sample(self.rng) for _ in range(count))
        return [self.evaluate(NET.space.decode(point)) for point in points]

    def succeed(self, count: int = 2) -> None:
        """Publish the best trials as the front and end the job."""
        baseline = measurement(Plan())
        problem = Problem(
            space=NET.space,
            costs=NET.costs,
            objectives=OBJECTIVES,
            constraints=CONSTRAINTS,
            baseline=baseline,
        )
        proposed = sorted(self.ledger.trials(), key=problem.rank_key)
        best = [trial for trial in proposed if trial.plan.decisions][:count]
        digest = self.store.put(checkpoint_zip())
        with self.database.write() as session:
            jobs.transition(session, self.id, JobState.FINALIZING, "the search has ended")
            stored = artifacts.register(session, digest, "checkpoint")
            members = tuple(
                fronts.Member(
                    trial_id=trial.id,
                    plan_digest=trial.plan.digest,
                    readings=measurement(trial.plan),
                    artifact_ids={"checkpoint": stored.id},
                )
                for trial in best
            )
            front = fronts.Front(
                members=members,
                baseline=baseline,
                outcome=JobOutcome.FRONT_FOUND,
                hypervolume=0.25,
            )
            fronts.publish(session, self.id, front)
            jobs.finish(session, self.id, JobState.SUCCEEDED, JobOutcome.FRONT_FOUND)
