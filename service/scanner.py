"""Checks registered models and datasets away from the API, and stores what it found."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

from compression.artifact import ModelArtifact
from compression.errors import DataRefused
from service.db import datasets, models
from service.db.session import Database
from service.settings import Settings
from workers.datasets.load import describe_dataset
from workers.job import DatasetArtifact
from workers.store import ArtifactStore

logger = logging.getLogger(__name__)

SCAN_TIMEOUT_S = 900.0


def scan_one(database: Database, store: ArtifactStore, settings: Settings, owner: str) -> bool:
    """Scan one waiting model or dataset; False when none waits."""
    with database.write() as session:
        model = models.claim_scanning(session, owner, SCAN_TIMEOUT_S)
    if model is not None:
        _scan_model(database, settings, model.id, model.artifact)
        return True
    with database.write() as session:
        dataset = datasets.claim_scanning(session, owner, SCAN_TIMEOUT_S)
    if dataset is not None:
        _scan_dataset(database, store, dataset.id, dataset.artifact)
        return True
    return False


def _scan_model(
    database: Database, settings: Settings, model_id: str, artifact: ModelArtifact
) -> None:
    code_dir = str(settings.code_dir) if settings.code_dir else None
    answer = _survey_process(settings.store_url, artifact, code_dir)
    with database.write() as session:
        if "ok" in answer:
            found = answer["ok"]
            models.set_ready(session, model_id, survey=found.pop("survey"), summary=found)
        else:
            models.set_rejected(session, model_id, answer["refused"])


def _survey_process(
    store_url: str, artifact: ModelArtifact, code_dir: str | None
) -> dict[str, Any]:
    request = json.dumps({"model": artifact.to_json(), "code_dir": code_dir})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.survey_model", store_url],
            input=request,
            capture_output=True,
            text=True,
            timeout=SCAN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"refused": f"The model could not be surveyed within {SCAN_TIMEOUT_S:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        logger.error("survey process failed: %s", done.stderr)
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        return {"refused": f"The model could not be surveyed: {reason}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _scan_dataset(
    database: Database, store: ArtifactStore, dataset_id: str, artifact: DatasetArtifact
) -> None:
    try:
        summary = describe_dataset(artifact, store)
    except DataRefused as error:
        with database.write() as session:
            datasets.set_rejected(session, dataset_id, str(error))
        return
    with database.write() as session:
        datasets.set_ready(session, dataset_id, summary)
