"""Things that database tests store."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from compression.artifact import Digest, ModelArtifact, Preprocessing
from service.db import datasets, jobs, lease, models
from service.db.ledger import SqlLedger
from service.db.session import Database
from workers.job import DatasetArtifact

MODEL = ModelArtifact(
    weights=Digest("1" * 64),
    format="safetensors",
    architecture="cifar_resnet20",
    options={"width": 16},
    input_shape=(3, 32, 32),
    preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)),
    num_classes=10,
)
DATASET = DatasetArtifact(data=Digest("2" * 64), format="npz")
START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime.datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += datetime.timedelta(seconds=seconds)


def store_job(database: Database, *, labels: Mapping[str, str] | None = None, seed: int = 0) -> str:
    """Store a model, a dataset and a QUEUED job on them; return the job's id."""
    with database.write() as session:
        model = models.create(session, name="resnet20", artifact=MODEL)
        dataset = datasets.create(session, name="cifar10", artifact=DATASET)
        job = jobs.create(
            session,
            name="edge",
            model_id=model.id,
            dataset_id=dataset.id,
            spec={"agent": "sobol"},
            labels=labels,
            seed=seed,
        )
    return job.id


def open_ledger(database: Database, owner: str = "first", clock: Clock | None = None) -> SqlLedger:
    """Claim the oldest runnable job and open its ledger."""
    clock = clock or Clock()
    with database.write() as session:
        claim = lease.claim_job(session, owner, 30.0, now=clock())
    assert claim is not None
    return SqlLedger(database, claim.job_id, owner, claim.epoch, 30.0, clock)
