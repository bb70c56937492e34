"""Fronts, artifacts, devices and baselines."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from search.device import DeviceSpec
from search.measurement import Measurement, Reading
from search.trial import Fidelity, Trial
from service.db import artifacts, baselines, devices, events, fronts, jobs
from service.db.errors import NotFound
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.job_state import JobOutcome
from tests.contracts.ledger import ONNX, WEIGHTS, finish, measurement, one
from tests.service_tests.stored import open_ledger, store_job

BASELINE = Measurement((Reading.exact("macs", 100.0, 100.0),))
BINDING = {"constraint": "macs", "relax_to": 0.6}


def confirmed(ledger: SqlLedger, keep: int) -> Trial:
    trial = one(ledger, keep, Fidelity.CONFIRMED)
    recorded = ledger.record(
        finish(trial, ledger.start(trial), artifacts={"onnx": ONNX, "checkpoint": WEIGHTS})
    )
    assert recorded is not None
    return recorded


def test_there_is_no_front_before_the_first(database: Database) -> None:
    job_id = store_job(database)
    with database.read() as session:
        assert fronts.latest(session, job_id) is None
        assert fronts.history(session, job_id) == []


def test_a_front_of_trials_comes_back_with_its_artifacts(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    members = [confirmed(ledger, keep) for keep in (2, 1)]
    with ledger.fenced() as session:
        revision = fronts.publish_trials(
            session,
            job_id,
            outcome=JobOutcome.FRONT_FOUND,
            baseline=BASELINE,
            front=members,
            hypervolume=0.25,
        )
    with database.read() as session:
        stored = fronts.latest(session, job_id)
        assert stored is not None
        ids = [artifacts.get(session, i) for i in stored.front.members[0].artifact_ids.values()]
    assert (stored.job_id, stored.revision, revision) == (job_id, 1, 1)
    assert [m.trial_id for m in stored.front.members] == [t.id for t in members]
    assert [m.plan_digest for m in stored.front.members] == [t.plan.digest for t in members]
    assert stored.front.members[0].readings == measurement()
    assert {a.role: a.digest for a in ids} == {"onnx": ONNX, "checkpoint": WEIGHTS}
    assert stored.front.baseline == BASELINE
    assert stored.front.outcome is JobOutcome.FRONT_FOUND
    assert stored.front.hypervolume == 0.25


def test_without_members_the_nearest_are_named(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    near = confirmed(ledger, 1)
    with ledger.fenced() as session:
        fronts.publish_trials(
            session,
            job_id,
            outcome=JobOutcome.INFEASIBLE,
            baseline=BASELINE,
            nearest=[near],
            binding=[BINDING],
        )
    with database.read() as session:
        stored = fronts.latest(session, job_id)
    assert stored is not None
    assert stored.front.members == ()
    assert [point["trial_id"] for point in stored.front.nearest] == [near.id]
    assert Measurement.from_json(stored.front.nearest[0]["readings"]) == measurement()
    assert list(stored.front.binding) == [BINDING]


def test_the_newest_revision_counts_and_each_is_an_event(database: Database) -> None:
    job_id = store_job(database)
    with database.write() as session:
        for volume in (0.1, 0.2, None):
            front = fronts.Front(members=(), baseline=BASELINE, hypervolume=volume)
            fronts.publish(session, job_id, front)
    with database.read() as session:
        stored = fronts.latest(session, job_id)
        history = fronts.history(session, job_id)
        kinds = [e.kind for e in events.after(session, job_id)]
        assert jobs.get(session, job_id).last_event == 4
    assert stored is not None
    assert (stored.revision, stored.front.hypervolume) == (3, None)
    assert [(revision, volume) for revision, volume, _ in history] == [
        (1, 0.1),
        (2, 0.2),
        (3, None),
    ]
    assert kinds == ["job.queued"] + ["front.published"] * 3


def test_an_unmeasured_trial_is_not_published(database: Database) -> None:
    job_id = store_job(database)
    ledger = open_ledger(database)
    trial = one(ledger)
    with pytest.raises(ValueError, match="PROPOSED"), ledger.fenced() as session:
        fronts.publish_trials(session, job_id, outcome=None, baseline=BASELINE, front=[trial])


def test_a_front_of_an_unknown_job_is_refused(database: Database) -> None:
    front = fronts.Front(members=(), baseline=BASELINE)
    with database.write() as session, pytest.raises(NotFound, match="job_none"):
        fronts.publish(session, "job_none", front)


def test_an_artifact_is_registered_once_per_role(database: Database) -> None:
    with database.write() as session:
        first = artifacts.register(session, ONNX, "onnx")
        again = artifacts.register(session, ONNX, "onnx", size_bytes=10)
        other = artifacts.register(
            session, ONNX, "upload", media_type="text/plain", file_name="a.txt", size_bytes=10
        )
        assert artifacts.get(session, first.id) == again
        with pytest.raises(NotFound, match="art_none"):
            artifacts.get(session, "art_none")
    assert again == dataclasses.replace(first, size_bytes=10)
    assert first.file_name == "model.onnx"
    assert other.id != first.id
    assert (other.media_type, other.file_name) == ("text/plain", "a.txt")


def test_unknown_roles_get_a_plain_name(database: Database) -> None:
    with database.write() as session:
        artifact = artifacts.register(session, ONNX, "trace")
    assert (artifact.file_name, artifact.media_type) == ("trace.bin", "application/octet-stream")


def test_artifact_ids_are_found_for_many_at_once(database: Database) -> None:
    with database.write() as session:
        onnx = artifacts.register(session, ONNX, "onnx")
        found = artifacts.ids(session, [{"onnx": ONNX, "report": ONNX}, {}, {"onnx": WEIGHTS}])
        assert artifacts.ids(session, []) == []
    assert found == [{"onnx": onnx.id}, {}, {}]


def test_a_device_is_renewed_and_its_fingerprint_is_its_hardware(database: Database) -> None:
    spec = DeviceSpec(name="local/onnxruntime", runtime="onnxruntime", hardware=(("cpu", "a"),))
    with database.write() as session:
        first = devices.put(session, spec)
        same = devices.put(session, spec)
        moved = devices.put(session, dataclasses.replace(spec, hardware=(("cpu", "b"),)))
        devices.put(session, DeviceSpec(name="a/b", runtime="onnxruntime"))
        assert devices.get(session, spec.name) == moved
        assert [d.spec.name for d in devices.everything(session)] == ["a/b", spec.name]
        with pytest.raises(NotFound, match="moon"):
            devices.get(session, "moon")
    assert first.spec == spec
    assert first.fingerprint == same.fingerprint != moved.fingerprint
    assert first.created_at == moved.created_at


def test_a_baseline_is_kept_by_model_dataset_and_device(database: Database) -> None:
    job_id = store_job(database)
    with database.write() as session:
        job = jobs.get(session, job_id)
        key = {"model_id": job.model_id, "dataset_id": job.dataset_id}
        assert baselines.get(session, **key, fingerprint="a") is None
        baselines.put(session, BASELINE, **key, fingerprint="a")
        baselines.put(session, measurement(), **key, fingerprint="a")
        baselines.put(session, BASELINE, **key, fingerprint="b")
    with database.read() as session:
        assert baselines.get(session, **key, fingerprint="a") == measurement()
        assert baselines.get(session, **key, fingerprint="b") == BASELINE


def test_the_same_blob_registered_by_many_at_once_is_one(database: Database) -> None:
    gate = threading.Barrier(4)
    found: list[str] = []

    def register() -> None:
        gate.wait()
        with database.write() as session:
            found.append(artifacts.register(session, ONNX, "onnx").id)

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
