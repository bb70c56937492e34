"""POST to checkpoint over HTTP, and what a scan refuses, with every process real."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from compression.models.digits_cnn import digits_cnn
from paretopress import ApiProblem, Client
from tests.e2e_tests.server import serving

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PREPROCESSING = {"layout": "NCHW", "scale": 16.0, "mean": [0.305], "std": [0.376]}
DEVICE = "local/onnxruntime"
OWN_CODE = """
from torch import nn

def build(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("server")
    package = folder / "code" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(OWN_CODE)
    with serving(folder / "data", code=folder / "code", profile_models=True) as (_, client):
        yield client


@pytest.fixture(scope="module")
def digits(client: Client) -> str:
    return client.register_dataset(name="digits", format="builtin", source="digits").id


def untrained(client: Client, name: str) -> str:
    """Register the demo's network with random weights; return its id."""
    state = digits_cnn().state_dict()
    return client.register_model(
        name=name,
        architecture="digits_cnn",
        weights=save({k: v.contiguous() for k, v in state.items()}),
        input_shape=[1, 8, 8],
        preprocessing=PREPROCESSING,
        num_classes=10,
    ).id


def trained(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Train the demo's network as the demo does, in a process of its own."""
    out = folder / "digits.safetensors"
    done = subprocess.run(
        [sys.executable, "-m", "workers.demo_model", "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return out, report


def test_three_bounds_at_once_from_post_to_a_checkpoint_that_loads(
    client: Client, digits: str, tmp_path: Path
) -> None:
    weights, report = trained(tmp_path)
    assert report["accuracy"] >= 0.97
    model = client.register_model(
        name="digits",
        architecture="digits_cnn",
        weights=weights,
        preprocessing=report["preprocessing"],
        input_shape=report["input_shape"],
        num_classes=10,
    )
    constraints = [
        {"metric": "latency_ms", "device": DEVICE, "at_most": 0.6, "relative_to": "baseline"},
        {"metric": "runtime_bytes", "at_most": 0.25, "relative_to": "baseline"},
        {"metric": "top1", "at_least": -0.05, "relative_to": "baseline_difference"},
    ]
    job = client.submit(
        name="whole way",
        model_id=model.id,
        dataset_id=digits,
        objectives=[{"metric": "top1"}],
        constraints=constraints,
        agent={"name": "random"},
        recovery={"epochs": 2, "augment": False, "finalists": 1},
        budget={"trials": 6},
        parallelism=2,
    )
    info = job.wait(progress=False, timeout_s=600)
    assert (info.state, info.outcome) == ("SUCCEEDED", "front_found")
    front = job.front()
    baseline = front.baseline.value("top1")
    for member in front.members:
        latency, top1 = member.readings.get("latency_ms"), member.readings.get("top1")
        assert latency is not None
        assert top1 is not None
        assert latency.ratio is not None
        assert latency.ratio.value <= 0.6
        assert latency.ratio.low <= latency.ratio.value <= latency.ratio.high
        assert top1.value >= baseline - 0.05
        assert top1.split == "test"
    folders = job.pull_all(tmp_path / "pulled")
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import torch; from model import load; print(load()(torch.zeros(2, 1, 8, 8)).shape)",
        ],
        cwd=folders[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch.Size([2, 10])" in loaded.stdout, loaded.stderr


def test_own_code_by_import_path_is_compressed(client: Client, digits: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(OWN_CODE, namespace)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(namespace["build"](width=24).state_dict(), tmp_path / "mine.safetensors")
    model = client.register_model(
        name="mine",
        architecture={"python": "my_package.models:build"},
        options={"width": 24},
        weights=tmp_path / "mine.safetensors",
        input_shape=[1, 8, 8],
        preprocessing=PREPROCESSING,
    )
    assert model.state == "READY"
    job = client.submit(
        model_id=model.id,
        dataset_id=digits,
        objectives=[{"metric": "top1"}],
        constraints=[{"metric": "macs", "at_most": 0.7, "relative_to": "baseline"}],
        methods={"allow": ["prune_channels"]},
        recovery={"epochs": 0.5, "augment": False, "finalists": 1},
        budget={"trials": 3},
    )
    info = job.wait(progress=False, timeout_s=600)
    assert (info.state, info.outcome) == ("SUCCEEDED", "front_found")
    macs = job.front().members[0].readings.get("macs")
    assert macs is not None
    assert macs.ratio is not None
    assert macs.ratio.value <= 0.7


def test_weights_of_another_architecture_are_rejected_with_the_layer_named(
    client: Client, digits: str
) -> None:
    state = digits_cnn().state_dict()
    state["linear.weight"] = torch.zeros(10, 7)
    model = client.register_model(
        name="wrong",
        architecture="digits_cnn",
        weights=save({k: v.contiguous() for k, v in state.items()}),
        input_shape=[1, 8, 8],
        preprocessing=PREPROCESSING,
        num_classes=10,
        wait=False,
    )
    with pytest.raises(ApiProblem, match=r"linear\.weight"):
        client.register_model(
            name="wrong",
            architecture="digits_cnn",
            weights=save({k: v.contiguous() for k, v in state.items()}),
            input_shape=[1, 8, 8],
            preprocessing=PREPROCESSING,
            num_classes=10,
        )
    with pytest.raises(ApiProblem, match=r"linear\.weight|REJECTED|refused"):
        client.submit(
            model_id=model.id,
            dataset_id=digits,
            objectives=[{"metric": "top1"}],
            budget={"trials": 3},
        )


def test_an_infeasible_job_names_what_is_in_the_way(client: Client, digits: str) -> None:
    model_id = untrained(client, "plain")
    job = client.submit(
        model_id=model_id,
        dataset_id=digits,
        objectives=[{"metric": "top1"}],
        constraints=[{"metric": "top1", "at_least": 0.999}],
        agent={"name": "random"},
        recovery={"epochs": 0, "finalists": 1},
        budget={"trials": 3},
    )
    info = job.wait(progress=False, timeout_s=600)
    assert (info.state, info.outcome) == ("SUCCEEDED", "infeasible")
    front = job.front()
    assert front.members == ()
    assert len(front.nearest) > 0
    assert front.binding_constraints[0]["constraint"].startswith("top1")


def test_a_running_job_is_cancelled(client: Client, digits: str) -> None:
    model_id = untrained(client, "cancelled")
    job = client.submit(
        model_id=model_id,
        dataset_id=digits,
        objectives=[{"metric": "top1"}],
        methods={"allow": ["prune_channels"]},
        budget={"trials": 500},
    )
    for event in job.watch():
        if event.kind == "trial.finished":
            break
    job.cancel()
    info = job.wait(progress=False, timeout_s=120)
    assert (info.state, info.outcome) == ("CANCELLED", "cancelled")
