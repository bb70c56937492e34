"""A job again: after kill -9 of any process it ends with the same trials; warm, it pays less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import save

from compression.models.digits_cnn import digits_cnn
from paretopress import Client, Job
from tests.e2e_tests.server import Server, serving, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRIALS = 10

Begun = tuple[Server, Client, dict[str, Any], Job]


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


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    """A server and the first job on it, which ended undisturbed and is remembered."""
    with serving(tmp_path_factory.mktemp("server") / "data") as (server, client):
        asked = job(*register(client))
        undisturbed = client.submit(asked)
        assert undisturbed.wait(progress=False, timeout_s=600).warm_trials == 0
        assert not any(trial.remembered for trial in undisturbed.trials())
        yield server, client, asked, undisturbed


def test_conductor_and_ray_killed_in_mid_job_change_nothing(first: Begun) -> None:
    server, client, asked, undisturbed = first
    # It is to evaluate everything again.
    disturbed = client.submit({**asked, "memory": False})

    def finished() -> int:
        return sum(t.state == "MEASURED" for t in disturbed.trials())

    wait_for(lambda: finished() >= 4, 300, "no trial was measured before the first kill")
    assert server.kill("-m service.conductor") == 1
    before = finished()
    wait_for(lambda: finished() >= before + 2, 300, "nothing went on after the conductor died")
    assert server.kill("raylet") + server.kill("gcs_server") > 0
    info = disturbed.wait(progress=False, timeout_s=600)

    assert info.state == "SUCCEEDED"
    assert story(client, disturbed.id) == story(client, undisturbed.id)
    numbers = [t.number for t in disturbed.trials()]
    assert len(numbers) == len(set(numbers))
    assert sum(t.fidelity == "proxy" for t in disturbed.trials()) == TRIALS + 1


def test_a_second_job_starts_warm_and_pays_for_nothing_again(first: Begun) -> None:
    _, client, asked, before_it = first
    second = client.submit({**asked, "agent": {"name": "random"}, "budget": {"trials": 4}})
    info = second.wait(progress=False, timeout_s=600)
    assert info.state == "SUCCEEDED"
    assert info.warm_trials == TRIALS
    started = [event.payload for event in second.watch() if event.kind == "job.warm_start"]
    assert started == [{"trials": TRIALS}]
    known = {(t.plan_digest, t.fidelity): t for t in before_it.trials()}
    for trial in second.trials():
        before = known.get((trial.plan_digest, trial.fidelity))
        again = before is not None and trial.fidelity != "confirmed"
        assert trial.remembered is again
        if before is not None and again:
            assert trial.readings == before.readings
