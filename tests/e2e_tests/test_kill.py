"""kill -9 of any process: the job ends with the same trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from compression.models.digits_cnn import digits_cnn
from paretopress import Client
from tests.e2e_tests.server import serving, wait_for

TRIALS = 10


def register(client: Client) -> tuple[str, str]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = digits_cnn()
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()})
    registered = client.register_model(
        name="digits",
        architecture="digits_cnn",
        weights=weights,
        format="safetensors",
        preprocessing={"layout": "NHWC", "scale": 16.0, "mean": [0.3], "std": [0.4]},
        input_shape=[1, 8, 8],
        num_classes=10,
    )
    dataset = client.register_dataset(name="digits", format="builtin", source="digits")
    return registered.id, dataset.id


def job(model_id: str, dataset_id: str) -> dict[str, Any]:
    return {
        "name": "kill",
        "model_id": model_id,
        "dataset_id": dataset_id,
        "objectives": [{"metric": "top1", "direction": "maximize"}],
        "constraints": [{"metric": "macs", "at_most": 0.6, "relative_to": "baseline"}],
        "methods": {"allow": ["prune_channels"]},
        "agent": {"name": "cbo", "options": {}},
        "recovery": {"epochs": 0.5, "finalists": 1},
        "budget": {"trials": TRIALS},
        "parallelism": 1,
        "seed": 3,
        # Both jobs are to evaluate everything.
        "memory": False,
    }


def story(client: Client, job_id: str) -> list[tuple[Any, ...]]:
    """Return what must not depend on who was killed: plans, states and untimed readings."""
    rows = []
    for trial in client.job(job_id).trials():
        values = {
            name: reading.value
            for name in ("top1", "top5", "agreement", "macs", "params")
            if (reading := trial.readings.get(name)) is not None
        }
        assert values.keys() >= {"top1", "macs"}
        rows.append((trial.number, trial.fidelity, trial.plan_digest, trial.state, values))
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.ray
@pytest.mark.slow
def test_conductor_and_ray_killed_in_mid_job_change_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (server, client):
        model_id, dataset_id = register(client)
        undisturbed = client.submit(job(model_id, dataset_id))
        undisturbed.wait(progress=False, timeout_s=240)

        disturbed = client.submit(job(model_id, dataset_id))

        def finished() -> int:
            return sum(t.state == "MEASURED" for t in disturbed.trials())

        wait_for(lambda: finished() >= 4, 120, "no trial was measured before the first kill")
        assert server.kill("-m service.conductor") == 1
        before = finished()
        wait_for(lambda: finished() >= before + 2, 120, "nothing went on after the conductor died")
        assert server.kill("raylet") + server.kill("gcs_server") > 0
        info = disturbed.wait(progress=False, timeout_s=240)

        assert info.state == "SUCCEEDED"
        assert story(client, disturbed.id) == story(client, undisturbed.id)
        numbers = [t.number for t in disturbed.trials()]
        assert len(numbers) == len(set(numbers))
        assert sum(t.fidelity == "proxy" for t in disturbed.trials()) == TRIALS + 1
