"""What a model's profile measures, within which limits, and that a process of its own makes it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compression.artifact import Digest
from compression.cost import CostTable
from compression.decisions import DropBlock, PruneChannels, Quantize, QuantizeWeights
from compression.models.digits_cnn import digits_cnn
from compression.plan import Plan
from compression.sensitivity import Effect
from compression.site import MODEL_SITE, Site
from compression.survey import survey
from compression.surveyed import Survey
from tests.workers_tests import small_net
from tests.workers_tests.small_job import SMALL_JOB
from workers.errors import WorkerError
from workers.sensitivity_options import MAX_IMAGES, profile_options
from workers.sensitivity_profile import MIN_IMAGES, Meter, images_within, profiled

SHAPE = (1, 8, 8)
IMAGES = 16


def site(name: str, kind: str, channels: int = 0, frozen: str | None = None) -> Site:
    return Site(name=name, kind=kind, channels=channels, macs=1, params=1, frozen=frozen)  # type: ignore[arg-type]


def test_options_come_in_the_order_of_what_they_tell() -> None:
    sites = (
        site("a", "channels", 16),
        site("b", "channels", 2),
        site("c", "channels", 8, frozen="its channels are the classes"),
        site("block", "block"),
        site("a", "layer"),
        site(MODEL_SITE, "model"),
    )
    found = profile_options(Survey(sites=sites, costs=CostTable((), {}), summary={}))
    assert found == (
        (MODEL_SITE, Quantize()),
        (MODEL_SITE, QuantizeWeights(bits=4)),
        ("a", PruneChannels(keep_channels=8)),
        ("b", PruneChannels(keep_channels=1)),
        ("block", DropBlock()),
        ("a", PruneChannels(keep_channels=4)),
        ("a", PruneChannels(keep_channels=12)),
        ("a", QuantizeWeights(bits=4)),
    )


def test_images_are_as_many_as_the_time_allows() -> None:
    assert images_within(1e-6, options=60) == MAX_IMAGES
    # 60 s for 60 options of 3 passes at 2 ms per image: 166 images.
    assert images_within(0.002, options=60, seconds=60) == 166
    assert images_within(0.06, options=60, seconds=60) == MIN_IMAGES
    with pytest.raises(WorkerError, match=r"One option takes 9\.6 s on 32 images; 6 s is the"):
        images_within(0.1, options=60, seconds=60)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return digits_cnn().eval()


@pytest.fixture(scope="module")
def meter(model: torch.nn.Module) -> Meter:
    inputs = torch.randn(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Meter(model, survey(model, SHAPE), inputs, [inputs])


def test_every_option_is_measured_or_named_as_left_out(
    model: torch.nn.Module, meter: Meter
) -> None:
    found = survey(model, SHAPE)
    options = profile_options(found)
    # However busy the machine is.
    whole = profiled(meter, found, max_seconds=600.0)
    assert [(e["site"]) for e in whole["effects"]] == [name for name, _ in options]
    assert whole["left_out"] == []
    assert whole["images"] == IMAGES
    effects = [Effect.from_json(effect) for effect in json.loads(json.dumps(whole["effects"]))]
    for effect in effects:
        cost = found.costs.cost(Plan.of({effect.site: [effect.decision]}))
        assert (effect.macs, effect.params) == (cost.macs, cost.params)
    # Integers move the outputs, and less than half the channels do.
    int8 = next(e.damage for e in effects if isinstance(e.decision, Quantize))
    halves = [e.damage for e in effects if isinstance(e.decision, PruneChannels)]
    assert 0 < int8 < max(halves)
    few = profiled(meter, found, max_options=2)
    assert len(few["effects"]) == 2
    assert [row["site"] for row in few["left_out"]] == [name for name, _ in options[2:]]
    assert {row["reason"] for row in few["left_out"]} == {"2 options were measured"}
    none = profiled(meter, found, max_seconds=-1.0)
    assert none["effects"] == []
    assert {row["reason"] for row in none["left_out"]} == {"-1 s of computing were over"}


@pytest.mark.slow
def test_a_process_of_its_own_profiles_a_model(tmp_path: Path) -> None:
    found_sites = survey(small_net.build().eval(), SHAPE)
    request = {
        "model": SMALL_JOB.model.to_json(),
        "dataset": SMALL_JOB.dataset.to_json(),
        "survey": found_sites.to_json(),
        "code_dir": SMALL_JOB.code_dir,
        "quiet_folder": str(tmp_path / "quiet"),
    }

    def ask(changes: dict[str, object]) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "workers.sensitivity_profile", (tmp_path / "store").as_uri()],
            input=json.dumps({**request, **changes}),
            capture_output=True,
            text=True,
            check=True,
        )
        answer: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    found = ask({})["ok"]
    assert isinstance(found, dict)
    assert len(found["effects"]) == len(profile_options(found_sites))
    assert 32 <= found["images"] <= 500
    gone = dataclasses.replace(
        SMALL_JOB.model,
        weights=Digest("0" * 64),
        format="safetensors",
        architecture="digits_cnn",
    )
    assert "0" * 64 in str(ask({"model": gone.to_json()})["refused"])
