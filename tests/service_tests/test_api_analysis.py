"""A job's model site by site: what single decisions damage, and what the front decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from compression.decisions import PruneChannels, Quantize, decision_to_json
from compression.plan import Plan
from compression.site import MODEL_SITE
from paretopress.layers import Layers
from service.db import jobs, sensitivity
from service.db.sensitivity import ProfileKey
from tests.service_tests.api_world import (
    DATASET,
    DENSE_MACS,
    MODEL,
    SURVEY,
    World,
    assert_problem,
    dense,
    measured,
    world,
)


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


def effect(site: str, decision: Any, damage: float) -> dict[str, Any]:
    cost = SURVEY.costs.cost(Plan.of({site: [decision]}))
    return {
        "site": site,
        "decision": decision_to_json(decision),
        "damage": damage,
        "macs": cost.macs,
        "params": cost.params,
    }


PROFILE: dict[str, Any] = {
    "effects": [
        effect(MODEL_SITE, Quantize(), 0.01),
        effect("first", PruneChannels(keep_channels=16), 0.4),
        effect("first", PruneChannels(keep_channels=8), 1.0),
    ],
    "left_out": [
        {
            "site": "second",
            "decision": decision_to_json(PruneChannels(keep_channels=32)),
            "reason": "60 s had passed",
        }
    ],
    "images": 500,
    "temperature": 4.0,
    "selector": "l2",
    "seconds": 12.5,
}


def store_profile(api: World, job_id: str) -> None:
    with api.database.write() as session:
        key = ProfileKey.of(MODEL, DATASET, jobs.get(session, job_id).model_id)
        assert sensitivity.claim(session, key, "test", 60.0) == "mine"
        sensitivity.put(session, key, PROFILE)


def layers(api: World, job_id: str) -> dict[str, Any]:
    answer = api.client.get(f"/api/v1/jobs/{job_id}/analysis/layers")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_before_a_profile_the_sites_are_told(api: World) -> None:
    found = layers(api, api.post_job())
    assert found["profile"]["state"] == "waiting"
    assert found["members"] == []
    assert [site["name"] for site in found["sites"]] == ["first", "second", "head", "model"]
    first = found["sites"][0]
    assert first["macs"] == 64 * 9 * 3 * 32
    assert first["macs_share"] == pytest.approx(64 * 9 * 3 * 32 / DENSE_MACS)
    assert found["sites"][2]["frozen"] == "its channels are the classes"
    assert found["sites"][3]["macs_share"] == 1.0


def test_options_are_told_with_their_damage(api: World) -> None:
    job_id = api.post_job()
    store_profile(api, job_id)
    found = layers(api, job_id)
    profile = found["profile"]
    assert profile["state"] == "ready"
    assert (profile["images"], profile["selector"], profile["seconds"]) == (500, "l2", 12.5)
    assert profile["left_out"] == [
        {"site": "second", "option": "keep 32 of 64", "reason": "60 s had passed"}
    ]
    options = found["sites"][0]["options"]
    assert [(o["option"], o["keep_ratio"], o["damage"]) for o in options] == [
        ("keep 16 of 32", 0.5, 0.4),
        ("keep 8 of 32", 0.25, 1.0),
    ]
    assert options[0]["macs"] == DENSE_MACS - 64 * 9 * (3 * 16 + 16 * 64)
    assert [o["option"] for o in found["sites"][3]["options"]] == ["int8"]


def test_the_best_so_far_is_told_site_by_site(api: World) -> None:
    job_id = api.post_job()
    store_profile(api, job_id)
    ledger = api.ledger()
    dense(ledger)
    plan = Plan.of(
        {
            "first": [PruneChannels(keep_channels=12)],
            "second": [PruneChannels(keep_channels=32)],
            MODEL_SITE: [Quantize()],
        }
    )
    trial = measured(ledger, plan, top1=0.8, latency_ms=0.3)
    found = layers(api, job_id)
    assert found["provisional"] is True
    (member,) = found["members"]
    assert (member["trial_id"], member["fidelity"]) == (trial.id, "proxy")
    decided = {row["site"]: row for row in member["decisions"]}
    first, second, model = decided["first"], decided["second"], decided["model"]
    assert (first["kind"], first["option"]) == ("channels", "keep 12 of 32")
    assert first["before"]["macs"] == 64 * 9 * 3 * 32
    assert first["after"]["macs"] == 64 * 9 * 3 * 12
    # Halfway between 16 and 8 of 32 channels.
    assert first["damage"] == pytest.approx(0.7)
    assert second["before"]["macs"] == 64 * 9 * 32 * 64
    assert second["after"]["macs"] == 64 * 9 * 12 * 32
    assert second["damage"] is None
    assert (model["kind"], model["option"], model["damage"]) == ("model", "int8", 0.01)
    assert model["after"]["weight_bytes"] < model["before"]["weight_bytes"] / 4
    # The client reads the same.
    typed = Layers.model_validate(found)
    assert typed.members[0].decisions[0].option == "keep 12 of 32"
    assert typed.sites[0].options[0].damage == 0.4
    assert typed.profile.state == "ready"


def test_a_failed_profile_says_why(api: World) -> None:
    job_id = api.post_job()
    with api.database.write() as session:
        key = ProfileKey.of(MODEL, DATASET, jobs.get(session, job_id).model_id)
        sensitivity.claim(session, key, "test", 60.0)
        sensitivity.refuse(session, key, "there are 0 calibration images; 2 are required")
    profile = layers(api, job_id)["profile"]
    assert profile["state"] == "failed"
    assert profile["problem"] == "there are 0 calibration images; 2 are required"


def test_an_unchanged_analysis_is_not_sent_again(api: World) -> None:
    job_id = api.post_job()
    path = f"/api/v1/jobs/{job_id}/analysis/layers"
    assert api.client.get(f"/api/v1/jobs/{job_id}").json()["links"]["layers"] == path
    etag = api.client.get(path).headers["etag"]
    assert api.client.get(path, headers={"If-None-Match": etag}).status_code == 304


def test_an_unknown_job_has_no_layers(api: World) -> None:
    assert_problem(api.client.get("/api/v1/jobs/job_none/analysis/layers"), 404, "not-found")


def test_recovery_options_are_kept_and_checked(api: World) -> None:
    asked = {
        "epochs": 1,
        "kd_loss": "ce_hard",
        "feature_loss": "attention",
        "mixup": 0.2,
        "average": "tail",
        "weight_decay": 0.001,
        "early_stop": 5,
        "quantization_aware": True,
    }
    job_id = api.post_job(recovery=asked, methods={"refit": "least_squares"})
    spec = api.client.get(f"/api/v1/jobs/{job_id}").json()["spec"]
    assert asked.items() <= spec["recovery"].items()
    assert spec["methods"]["refit"] == "least_squares"


@pytest.mark.parametrize(
    ("part", "pointer"),
    [
        ({"recovery": {"mixup": 1.5}}, "/recovery/mixup"),
        ({"recovery": {"kd_loss": "mse"}}, "/recovery/kd_loss"),
        ({"recovery": {"early_stop": 0}}, "/recovery/early_stop"),
        ({"recovery": {"weight_decay": -1}}, "/recovery/weight_decay"),
        ({"recovery": {"average": "swa"}}, "/recovery/average"),
        ({"recovery": {"distill": False, "feature_loss": "cckd"}}, "/recovery/feature_loss"),
        ({"methods": {"refit": "exact"}}, "/methods/refit"),
    ],
)
def test_an_option_out_of_range_is_refused(api: World, part: dict[str, Any], pointer: str) -> None:
    answer = api.client.post("/api/v1/jobs", json=api.job_body(**part))
    document = assert_problem(answer, 422, "validation", pointer)
    value = next(iter(next(iter(part.values())).values())) if len(part) == 1 else None
    (fault,) = document["errors"]
    assert value is False or str(value) in fault["message"]
