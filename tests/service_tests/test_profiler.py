"""A job's model is profiled beside the job, once for all jobs, and no failure harms anybody."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from compression.artifact import ModelArtifact
from compression.models.digits_cnn import digits_cnn
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.survey import survey
from service import profiler
from service.db import sensitivity
from service.db.sensitivity import ProfileKey, StoredProfile
from service.db.session import Database
from service.settings import Settings
from tests.workers_tests import small_net
from tests.workers_tests.small_job import SMALL_JOB
from tests.workers_tests.works import JOB
from workers.job import DatasetArtifact, JobSpec
from workers.open_store import open_store

pytestmark = pytest.mark.slow

WAIT_S = 600.0
"""The process yields to everything else: on a busy machine it takes long."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def digits(settings: Settings) -> tuple[JobSpec, dict[str, Any]]:
    """Store a small network; return a job on it and its survey."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits_cnn().eval()
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    artifact = ModelArtifact(
        weights=open_store(settings.store_url).put(save(weights)),
        format="safetensors",
        architecture="digits_cnn",
        input_shape=(1, 8, 8),
        preprocessing=DIGITS_PREPROCESSING,
        num_classes=10,
    )
    data = DatasetArtifact(data=None, format="builtin", name="digits")
    spec = dataclasses.replace(JOB, model=artifact, dataset=data)
    return spec, survey(model, (1, 8, 8)).to_json()


def wait(database: Database, spec: JobSpec) -> StoredProfile:
    key = ProfileKey.of(spec.model, spec.dataset, "mdl_1")
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with database.read() as session:
            found = sensitivity.get(session, key)
        if found.state in ("ready", "failed"):
            return found
        time.sleep(0.2)
    raise AssertionError(f"the profile is {found.state} after {WAIT_S:g} s")


def begin(
    database: Database, settings: Settings, spec: JobSpec, found: dict[str, Any]
) -> threading.Event:
    ended = threading.Event()
    profiler.start(
        database, settings, spec, model_id="mdl_1", survey=found, owner="test", ended=ended
    )
    return ended


def test_a_jobs_model_is_profiled_once(database: Database, settings: Settings) -> None:
    spec, found = SMALL_JOB, survey(small_net.build().eval(), (1, 8, 8)).to_json()
    begin(database, settings, spec, found)
    stored = wait(database, spec)
    assert stored.state == "ready", stored.problem
    assert stored.profile is not None
    assert stored.profile["effects"]
    again = dataclasses.replace(spec, job_id="job_2", seed=1)
    begin(database, settings, again, found)
    assert wait(database, again) == stored


def test_what_cannot_be_profiled_is_told(database: Database, settings: Settings) -> None:
    spec, found = digits(settings)
    lost = dataclasses.replace(spec.model, weights="0" * 64)  # type: ignore[arg-type]
    spec = dataclasses.replace(spec, model=lost)
    begin(database, settings, spec, found)
    stored = wait(database, spec)
    assert stored.state == "failed"
    assert "0" * 64 in str(stored.problem)


def test_a_process_that_dies_leaves_its_place(database: Database, settings: Settings) -> None:
    spec, _ = digits(settings)
    key = ProfileKey.of(spec.model, spec.dataset, "mdl_1")
    # A request that no process can read stands for whatever kills one.
    assert profiler.profile_once(database, settings.store_url, key, {}, "test")
    with database.read() as session:
        assert sensitivity.get(session, key).state == "waiting"


def test_an_operator_can_switch_it_off(database: Database, settings: Settings) -> None:
    spec, found = digits(settings)
    off = settings.model_copy(update={"profile_models": False})
    threads = threading.active_count()
    begin(database, off, spec, found)
    assert threading.active_count() == threads
