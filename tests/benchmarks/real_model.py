"""Trained CIFAR ResNets over HTTP, three hard constraints at once, from POST to checkpoints.

Target: the front is not empty, every member holds all bounds on re-measurement, and ResNet-56
loses at most 1.5 points of held-out accuracy after at most 4 epochs of recovery.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import httpx

import paretopress
from tests.benchmarks.record import record
from tests.cifar import PREPROCESSING, dataset_npz, weights
from tests.conftest import real_data_folder

EPOCHS = 4
LARGEST_DROP = {"cifar_resnet20": 0.03, "cifar_resnet56": 0.015}
CONSTRAINTS = [
    {"metric": "macs", "at_most": 0.5, "relative_to": "baseline"},
    {
        "metric": "latency_ms",
        "statistic": "p50",
        "device": "local/onnxruntime",
        "at_most": 0.7,
        "relative_to": "baseline",
    },
    {"metric": "runtime_bytes", "at_most": 0.25, "relative_to": "baseline"},
]


def job(model_id: str, dataset_id: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the job as it is POSTed."""
    return {
        "name": name,
        "model_id": model_id,
        "dataset_id": dataset_id,
        "objectives": [{"metric": "top1", "direction": "maximize"}],
        "constraints": CONSTRAINTS,
        "methods": {
            "allow": ["prune_channels", "quantize"],
            "channel_multiple": options.channel_multiple,
        },
        "agent": {"name": options.agent, "options": {}},
        "recovery": {"epochs": EPOCHS, "distill": True, "finalists": options.finalists},
        "budget": {"trials": options.trials},
        "parallelism": 2,
        "seed": options.seed,
    }


def submit(
    client: paretopress.Client, folder: Path, name: str, options: argparse.Namespace
) -> paretopress.Job:
    """Register model and data and submit the job."""
    model = client.register_model(
        name=name,
        architecture=name,
        weights=weights(folder, name),
        format="safetensors",
        preprocessing=PREPROCESSING,
        input_shape=[3, 32, 32],
        num_classes=10,
    )
    dataset = client.register_dataset(name="cifar10", format="npz", data=dataset_npz(folder))
    return client.submit(job(model.id, dataset.id, name, options))


def report(client: paretopress.Client, done: paretopress.Job, options: argparse.Namespace) -> bool:
    """Record the figures of an ended job; whether its target held."""
    info = client.get(f"/jobs/{done.id}")
    front = client.get(f"/jobs/{done.id}/front")
    name = info["name"]
    baseline = front["baseline"]
    drops = [
        baseline["top1"]["value"] - member["readings"]["top1"]["value"]
        for member in front["members"]
    ]
    passed = bool(drops) and max(drops) <= LARGEST_DROP[name]
    record(
        "real_model",
        passed=passed,
        seed=options.seed,
        model=name,
        wall_s=round(_seconds(info["ended_at"]) - _seconds(info["started_at"]), 1),
        trials=options.trials,
        agent=options.agent,
        epochs=EPOCHS,
        outcome=front["outcome"],
        drops=drops,
        largest_drop=LARGEST_DROP[name],
        baseline=baseline,
        members=[member["readings"] for member in front["members"]],
        steps=[_steps(client, member) for member in front["members"]],
        binding=front["binding_constraints"],
    )
    return passed


def _steps(client: paretopress.Client, member: dict[str, Any]) -> Any:
    """Return what each step of a member cost, from its report."""
    with httpx.Client(base_url=client.url) as http:
        path = f"/api/v1/artifacts/{member['artifacts']['report']}/content"
        return http.get(path, follow_redirects=True).json()["steps"]


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


def main() -> None:
    """Run both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["cifar_resnet20", "cifar_resnet56"])
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--finalists", type=int, default=1, help="recovered in full, at first")
    parser.add_argument("--agent", default="auto")
    parser.add_argument("--channel-multiple", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=None, help="server's data folder")
    parser.add_argument("--job", default=None, help="go on with, or report, this job in --data")
    options = parser.parse_args()
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    with paretopress.local(data=options.data) as client:
        results = []
        for name in options.models:
            submitted = (
                client.job(options.job) if options.job else submit(client, folder, name, options)
            )
            submitted.wait(progress=True)
            results.append(report(client, submitted, options))
    raise SystemExit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
