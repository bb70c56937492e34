"""One plan up the whole ladder on a real network: proxy, short, full, confirmed."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from compression.artifact import Digest, ModelArtifact
from compression.container import decode
from compression.decisions import Factorize, PruneChannels, Share, Sparsify
from compression.methods import Methods, resolve_space
from compression.models.digits_cnn import digits_cnn
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.survey import survey
from search.device import LOCAL_DEVICES, DeviceSpec
from search.measurement import Failed, Measured, Measurement
from search.objective import Constraint
from search.trial import Attempt, Fidelity, Trial
from tests.workers_tests.works import JOB
from workers import confirm, readings, rungs
from workers.edge import guarded
from workers.evaluate import runner
from workers.executor import Finished, Runner, Work
from workers.job import DatasetArtifact, JobSpec, Recovery, Scoring
from workers.meters import RUNTIMES
from workers.store import FolderStore

pytestmark = pytest.mark.slow

LATENCY = Constraint(
    metric="latency_ms",
    at_most=0.9,
    relative_to="baseline",
    device="local/onnxruntime",
    statistic="p50",
)

OPENVINO = DeviceSpec(name="local/openvino", runtime="openvino")
DEVICES = (*LOCAL_DEVICES, *((OPENVINO,) if RUNTIMES["openvino"].installed else ()))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def job(store: FolderStore) -> JobSpec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits_cnn()
    weights = store.put(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    return dataclasses.replace(
        JOB,
        model=ModelArtifact(
            weights=weights,
            format="safetensors",
            architecture="digits_cnn",
            input_shape=(1, 8, 8),
            preprocessing=DIGITS_PREPROCESSING,
            num_classes=10,
        ),
        dataset=DatasetArtifact(data=None, format="builtin", name="digits"),
        constraints=tuple(dataclasses.replace(LATENCY, device=d.name) for d in DEVICES),
        devices=DEVICES,
        recovery=Recovery(epochs=1.0, augment=False, short_steps=10, distill=False),
        scoring=Scoring(recalibration_images=100, proxy_images=100),
    )


@pytest.fixture(scope="module")
def run(
    job: JobSpec, store: FolderStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    quiet = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patch:
        # How precise times are is for the stopwatch's tests; here it matters that they are there.
        patch.setattr(readings, "MIN_TIMING_S", 1.0)
        patch.setattr(confirm, "TIMING_S", 3.0)
        patch.setattr(rungs, "PROXY_TIMING_S", 1.0)
        patch.setattr(rungs, "FULL_TIMING_S", 1.0)
        yield guarded(lambda: runner(job, store.root.as_uri(), str(quiet)))


@pytest.fixture(scope="module")
def plan(job: JobSpec) -> Plan:
    sites = survey(digits_cnn(), job.model.input_shape).sites
    space = resolve_space(sites, Methods())
    return space.decode(space.uniform(0.5, precision="int8"))


def climb(
    run: Runner, plan: Plan, fidelity: Fidelity, base: Any = None
) -> tuple[Finished, Measurement, list[Mapping[str, Any]]]:
    trial = Trial(id="trl_0", number=0, plan=plan, fidelity=fidelity, seed=1, agent="x", base=base)
    progress: list[Mapping[str, Any]] = []
    attempt = Attempt(id="att_0", trial_id=trial.id, epoch=1)
    finished = run(Work(trial=trial, attempt=attempt), progress.append)
    assert isinstance(finished.outcome, Measured), finished.outcome
    return finished, finished.outcome.measurement, progress


def value(measurement: Measurement, metric: str) -> float:
    reading = measurement.get(metric)
    assert reading is not None
    return reading.value


def test_a_proxy_is_scored_sized_and_timed(run: Runner, plan: Plan) -> None:
    finished, measurement, _ = climb(run, plan, Fidelity.PROXY)
    assert {"apply", "recalibrate", "export", "quantize", "score", "time"} <= set(finished.seconds)
    macs = measurement.get("macs")
    assert macs is not None
    assert macs.ratio is not None
    assert 0.2 < macs.ratio.value < 0.5
    latency = LATENCY.reading(measurement)
    assert latency is not None
    assert latency.ratio is not None
    assert value(measurement, "runtime_bytes") < 0.3 * 8_252_752
    assert finished.artifacts == {}


def test_the_dense_model_is_its_own_baseline(run: Runner) -> None:
    _, measurement, _ = climb(run, Plan(), Fidelity.PROXY)
    assert value(measurement, "agreement") == 1.0
    for metric in ("macs", "params", "runtime_bytes"):
        reading = measurement.get(metric)
        assert reading is not None
        assert reading.ratio is not None
        assert reading.ratio.value == 1.0


def test_the_same_proxy_gives_the_same_score(run: Runner, plan: Plan) -> None:
    _, first, _ = climb(run, plan, Fidelity.PROXY)
    _, second, _ = climb(run, plan, Fidelity.PROXY)
    assert value(first, "top1") == value(second, "top1")


def test_a_short_trial_trains(run: Runner, plan: Plan) -> None:
    finished, _, progress = climb(run, plan, Fidelity.SHORT)
    assert finished.seconds["recover"] > 0
    assert progress[-1]["done"] == progress[-1]["of"] == 10


def test_a_recovered_trial_is_confirmed_from_its_files(
    run: Runner, plan: Plan, job: JobSpec, store: FolderStore
) -> None:
    full, at_full, progress = climb(run, plan, Fidelity.FULL)
    assert any(item["step"] == "recover" for item in progress)
    assert value(at_full, "top1") > 0.3
    manifest = json.loads(store.get(full.artifacts["recovered"]))
    realised = Plan.from_json(json.loads(store.get(manifest["parts"]["plan"]))["plan"])
    confirmed, readings, _ = climb(
        run, realised, Fidelity.CONFIRMED, base=full.artifacts["recovered"]
    )
    top1 = readings.get("top1")
    assert top1 is not None
    assert top1.split == "test"
    for size in ("runtime_bytes", "resident_bytes", "download_bytes"):
        assert value(readings, size) > 0
    place = job.devices[0].name
    for metric in ("latency_hot_ms", "load_ms", "first_inference_ms"):
        assert readings.get(metric, place, "p50") is not None
    with np.load(io.BytesIO(store.get(confirmed.artifacts["times"]))) as times:
        assert times[f"{place}/candidate_ms"].shape == times[f"{place}/baseline_ms"].shape
    archive = zipfile.ZipFile(io.BytesIO(store.get(confirmed.artifacts["checkpoint"])))
    assert {
        "model.py",
        "model.safetensors",
        "model.onnx",
        "model.ppz",
        "plan.json",
        "report.json",
        "README.md",
        "LICENSE-NOTE",
    } == set(archive.namelist())
    onnx = archive.read("model.onnx")
    assert decode(archive.read("model.ppz")) == onnx == store.get(confirmed.artifacts["onnx"])
    assert len(onnx) == value(readings, "runtime_bytes")
    report = json.loads(store.get(confirmed.artifacts["report"]))
    assert [step["name"] for step in report["steps"]] == [
        "original",
        "prune_channels",
        "recover",
        "quantize",
    ]
    other = [device.name for device in DEVICES[1:]]
    assert [row["device"] for row in report["devices"]] == other
    for row in report["devices"]:
        assert row["agreement"] > 0.9
        assert abs(row["scores"]["top1"]["value"] - top1.value) < 0.05
    profile = json.loads(store.get(confirmed.artifacts["profile"]))
    assert set(profile) == {device.name for device in DEVICES}
    layer = report["layers"][0]
    for side, milliseconds in (("baseline", "ms_before"), ("candidate", "ms_after")):
        times = {row["name"]: row["median_ms"] for row in profile["local/onnxruntime"][side]}
        assert layer[milliseconds] == times[layer["name"]]
    timed = [row for row in report["metrics"] if row["metric"] == "latency_ms"]
    assert {row["macs_ratio"] for row in timed} == {
        row["change"]["value"] for row in report["metrics"] if row["metric"] == "macs"
    }
    readme = archive.read("README.md").decode()
    assert "own counts on local/onnxruntime" in readme
    assert ("## On each device" in readme) == bool(other)
    assert json.loads(archive.read("plan.json"))["source"] == job.model.to_json() | {
        "input_shape": [1, 8, 8],
        "preprocessing": {"layout": "NCHW", "scale": 16.0, "mean": [0.305], "std": [0.376]},
    }


def test_a_plan_of_many_primitives_is_recovered_in_two_parts_and_confirmed(
    run: Runner, job: JobSpec, store: FolderStore
) -> None:
    result = survey(digits_cnn(), job.model.input_shape)
    widths = {s.name: s.channels for s in result.prunable()}
    layers = [row for row in result.costs.layers if row.window == (3, 3)]
    plan = Plan.of(
        {
            next(iter(widths)): [PruneChannels(keep_channels=8)],
            layers[-1].name: [Factorize(method="spatial", rank_ratio=0.5)],
            MODEL_SITE: [Sparsify(sparsity=0.5), Share(entries=16)],
        }
    )
    _, proxied, _ = climb(run, plan, Fidelity.PROXY)
    full, at_full, _ = climb(run, plan, Fidelity.FULL)
    assert value(at_full, "macs") == result.costs.cost(plan).macs == value(proxied, "macs")
    confirmed, readings, _ = climb(run, plan, Fidelity.CONFIRMED, full.artifacts["recovered"])
    report = json.loads(store.get(confirmed.artifacts["report"]))
    assert [step["name"] for step in report["steps"]] == [
        "original",
        "prune_channels",
        "factorize",
        "sparsify",
        "recover",
        "share",
        "recover",
    ]
    # Sixteen values and half of them zero: about two bits a weight, and the file still runs.
    assert value(readings, "download_bytes") < 0.15 * value(readings, "runtime_bytes")
    words = {row["name"]: row["decision"] for row in report["layers"]}
    assert "spatial factors at 50% of the break-even rank" in words[layers[-1].name]


def test_a_plan_for_another_model_fails_for_good(run: Runner) -> None:
    wrong = Plan.of({"layer9": [PruneChannels(keep_channels=8)]})
    trial = Trial(id="trl_1", number=1, plan=wrong, fidelity=Fidelity.PROXY, seed=1, agent="x")
    attempt = Attempt(id="att_1", trial_id=trial.id, epoch=1)
    outcome = run(Work(trial=trial, attempt=attempt), lambda _: None).outcome
    assert isinstance(outcome, Failed)
    assert not outcome.retryable
    assert "layer9" in outcome.error


def test_a_base_that_is_gone_fails_its_trial(run: Runner, plan: Plan) -> None:
    trial = Trial(
        id="trl_3",
        number=3,
        plan=plan,
        fidelity=Fidelity.PROXY,
        seed=1,
        agent="x",
        base=Digest("ab" * 32),
    )
    attempt = Attempt(id="att_3", trial_id=trial.id, epoch=1)
    outcome = run(Work(trial=trial, attempt=attempt), lambda _: None).outcome
    assert isinstance(outcome, Failed)
    assert not outcome.retryable
    assert "no blob abab" in outcome.error


def test_weights_that_do_not_fit_fail_every_trial_with_the_reason(
    job: JobSpec, store: FolderStore, tmp_path: Path, plan: Plan
) -> None:
    weights = store.put(save({"conv1.weight": torch.zeros(3, 3)}))
    broken = dataclasses.replace(job, model=dataclasses.replace(job.model, weights=weights))
    run = guarded(lambda: runner(broken, store.root.as_uri(), str(tmp_path)))
    trial = Trial(id="trl_2", number=2, plan=plan, fidelity=Fidelity.PROXY, seed=1, agent="x")
    attempt = Attempt(id="att_2", trial_id=trial.id, epoch=1)
    outcome = run(Work(trial=trial, attempt=attempt), lambda _: None).outcome
    assert isinstance(outcome, Failed)
    assert "conv1.weight" in outcome.error or "bn1" in outcome.error
