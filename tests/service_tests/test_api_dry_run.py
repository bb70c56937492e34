"""A job before it runs: space, reachable region, contradictions, forecast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from search.catalogue import DEFAULT
from service.db import models
from tests.service_tests.api_world import (
    DENSE_MACS,
    DENSE_PARAMS,
    DEVICE,
    SMALLEST_MACS,
    SURVEY,
    World,
    assert_problem,
    world,
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


def post(api: World, *, dry: bool = False, **changes: Any) -> httpx.Response:
    path = "/api/v1/jobs" + ("?dry_run=true" if dry else "")
    answer: httpx.Response = api.client.post(path, json=api.job_body(**changes))
    return answer


def test_a_dry_run_says_what_is_known_and_stores_nothing(api: World) -> None:
    before = api.client.get("/api/v1/jobs").json()["data"]
    answer = post(api, dry=True, methods={"freeze": ["first"]}, agent={"name": "auto"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["spec"]["agent"] == DEFAULT
    assert [(k["site"], k["field"]) for k in found["space"]["knobs"]] == [
        ("second", "keep_channels"),
        ("model", "precision"),
    ]
    # 8, 16, ..., 64 channels, in float or int8.
    assert found["space"]["size"] == "16"
    frozen = {site["site"]: site["reason"] for site in found["space"]["frozen"]}
    assert frozen == {
        "first": "methods.freeze names first",
        "head": "its channels are the classes",
    }
    assert found["baseline"]["macs"]["value"] == DENSE_MACS
    assert found["baseline"]["flops"]["value"] == 2 * DENSE_MACS
    assert found["baseline"]["params"]["value"] == DENSE_PARAMS
    assert found["would_be_accepted"] is True
    assert "code_dir" not in found["spec"]
    assert api.client.get("/api/v1/jobs").json()["data"] == before


def test_reachability_is_told_bound_by_bound(api: World) -> None:
    bounds = [
        {"metric": "macs", "at_most": 0.5, "relative_to": "baseline"},
        {"metric": "params", "at_most": 1},
        {"metric": "latency_ms", "device": DEVICE, "at_most": 0.1},
        {"metric": "top1", "at_least": -0.01, "relative_to": "baseline_difference"},
        {"metric": "runtime_bytes", "at_most": 100},
        {"metric": "flops", "at_least": 100},
    ]
    found = post(api, dry=True, constraints=bounds).json()
    verdicts = {item["key"]: item for item in found["constraints"]}
    assert verdicts["macs"]["reachable"] == "yes"
    assert verdicts["macs"]["limit"] == DENSE_MACS / 2
    assert verdicts["params"]["reachable"] == "no"
    assert verdicts[f"latency_ms@{DEVICE}:p50"]["reachable"] == "unknown"
    assert verdicts["top1"]["reachable"] == "yes"
    assert verdicts["runtime_bytes"]["reachable"] == "unknown"
    assert "estimate" in verdicts["runtime_bytes"]["warning"]
    assert verdicts["flops"]["reachable"] == "yes"
    assert found["would_be_accepted"] is False
    assert found["reachable"]["macs"] == {"min": SMALLEST_MACS, "max": DENSE_MACS, "exact": True}
    assert found["reachable"]["weight_bytes"]["exact"] is False


def test_an_unreachable_bound_is_refused_with_the_region(api: World) -> None:
    bounds = [
        {"metric": "top1", "at_least": 0.5},
        {"metric": "macs", "at_most": 0.01, "relative_to": "baseline"},
    ]
    answer = post(api, constraints=bounds)
    document = assert_problem(answer, 422, "unreachable-constraint", "/constraints/1")
    assert document["reachable"]["macs"] == {
        "min": SMALLEST_MACS,
        "max": DENSE_MACS,
        "exact": True,
    }
    assert f"{SMALLEST_MACS:,}" in document["detail"]
    above = [{"metric": "flops", "at_least": 2 * DENSE_MACS + 1}]
    assert_problem(post(api, constraints=above), 422, "unreachable-constraint", "/constraints/0")
    exactly = [{"metric": "macs", "at_most": SMALLEST_MACS}]
    assert post(api, constraints=exactly).status_code == 202


def test_the_forecast_states_its_arithmetic(api: World) -> None:
    scoring = {"recalibration_images": 100, "proxy_images": 300}
    found = post(api, dry=True, scoring=scoring, parallelism=2).json()["forecast"]
    # (100 + 300) images x 0.5 ms = 0.2 s, beside 3 s to build, export and time.
    assert found["per_trial_s"] == pytest.approx(3.2)
    assert found["search_s"] == pytest.approx(8 * (0.1 + 3.0))
    assert found["trials"] == 8
    assert any("3.2 s" in line for line in found["arithmetic"])
    budget = {"trials": 1000, "wall_s": 32}
    found = post(api, dry=True, scoring=scoring, budget=budget).json()["forecast"]
    assert found["trials"] == 10


@pytest.mark.parametrize(
    ("bounds", "pointer"),
    [
        ([{"metric": "macs", "at_most": -5}], "/constraints/0/at_most"),
        ([{"metric": "macs", "at_most": 0}], "/constraints/0/at_most"),
        ([{"metric": "top1", "at_least": 1.01}], "/constraints/0/at_least"),
        (
            [{"metric": "top1", "at_least": 2, "relative_to": "baseline_difference"}],
            "/constraints/0/at_least",
        ),
        ([{"metric": "macs"}], "/constraints/0"),
        ([{"metric": "macs", "at_most": 1, "at_least": 1}], "/constraints/0"),
        (
            [{"metric": "macs", "at_most": 2000}, {"metric": "macs", "at_most": 3000}],
            "/constraints/1",
        ),
        (
            [{"metric": "top1", "at_most": 0.5}, {"metric": "top1", "at_least": 0.6}],
            "/constraints/1",
        ),
        # FLOPs are twice the MACs, and half of the baseline is known exactly.
        (
            [
                {"metric": "macs", "at_least": 0.6, "relative_to": "baseline"},
                {"metric": "flops", "at_most": DENSE_MACS},
            ],
            "/constraints/1",
        ),
        (
            [
                {
                    "metric": "latency_ms",
                    "device": DEVICE,
                    "at_most": 0.5,
                    "relative_to": "baseline",
                },
                {
                    "metric": "latency_ms",
                    "device": DEVICE,
                    "at_least": 0.6,
                    "relative_to": "baseline",
                },
            ],
            "/constraints/1",
        ),
        ([{"metric": "macs", "at_most": "much"}], "/constraints/0/at_most"),
        ([{"metric": "macs", "at_mostt": 1}], "/constraints/0/at_mostt"),
        ([{"metric": "latency", "at_most": 1}], "/constraints/0/metric"),
        ([{"metric": "latency_ms", "at_most": 1}], "/constraints/0/device"),
        ([{"metric": "latency_ms", "device": "moon", "at_most": 1}], "/constraints/0/device"),
        ([{"metric": "macs", "device": DEVICE, "at_most": 1}], "/constraints/0/device"),
        (
            [{"metric": "latency_ms", "device": DEVICE, "statistic": "p42", "at_most": 1}],
            "/constraints/0/statistic",
        ),
    ],
)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
def test_bounds_that_make_no_sense_are_refused(
    api: World, bounds: list[dict[str, Any]], pointer: str, dry: bool
) -> None:
    before = api.client.get("/api/v1/jobs").json()["data"]
    assert_problem(post(api, dry=dry, constraints=bounds), 422, "validation", pointer)
    assert api.client.get("/api/v1/jobs").json()["data"] == before


def test_stored_timings_compare_relative_and_absolute_bounds(api: World) -> None:
    readings = [
        {
            "metric": "latency_ms",
            "value": 2.0,
            "low": 1.9,
            "high": 2.1,
            "n": 50,
            "device": DEVICE,
            "statistic": "p50",
            "unit": "ms",
        }
    ]
    model_id = api.store_model(ready=False)
    with api.database.write() as session:
        summary = {"readings": readings}
        models.set_ready(session, model_id, survey=SURVEY.to_json(), summary=summary)
    bounds = [
        {"metric": "latency_ms", "device": DEVICE, "at_most": 0.5, "relative_to": "baseline"},
        {"metric": "latency_ms", "device": DEVICE, "at_least": 1.5},
    ]
    answer = post(api, dry=True, model_id=model_id, constraints=bounds)
    document = assert_problem(answer, 422, "validation", "/constraints/1")
    assert "at most 1" in document["detail"]
    found = post(api, dry=True, model_id=model_id, constraints=bounds[:1]).json()
    assert found["constraints"][0]["limit"] == 1.0
    assert found["baseline"]["latency_ms"]["value"] == 2.0
    assert found["forecast"]["per_trial_s"] is None


@pytest.mark.parametrize(
    ("changes", "pointer", "word"),
    [
        ({"agent": {"name": "randm"}}, "/agent/name", "did you mean 'random'"),
        ({"agent": {"name": "random", "options": {"speed": 9}}}, "/agent/options", "speed"),
        ({"objectives": [{"metric": "top_1"}]}, "/objectives/0/metric", "top1"),
        ({"objectives": []}, "/objectives", ""),
        ({"objectives": [{"metric": "latency_ms"}]}, "/objectives/0/device", DEVICE),
        (
            {"objectives": [{"metric": "top1", "direction": "minimize"}]},
            "/objectives/0/direction",
            "maximize",
        ),
        ({"objectives": [{"metric": "top1"}] * 2}, "/objectives/1", "twice"),
        ({"methods": {"freeze": ["frist"]}}, "/methods/freeze/0", "did you mean 'first'"),
        ({"methods": {"allow": ["prune"]}}, "/methods/allow/0", "prune_channels"),
        ({"methods": {"selectors": ["l3"]}}, "/methods/selectors/0", "l2"),
        ({"methods": {"allow": []}}, "/methods", "allow"),
        ({"methods": {"channel_multiple": 0}}, "/methods", "channel_multiple"),
        (
            {"methods": {"allow": ["prune_channels"], "freeze": ["first", "second"]}},
            "/methods",
            "Nothing is left",
        ),
        ({"budget": {}}, "/budget", "at least one"),
        ({"budget": {"trials": 10**7}}, "/budget/trials", "at most 10000"),
        ({"parallelism": 1000}, "/parallelism", "at most 64"),
        ({"model_id": "mdl_none"}, "/model_id", "mdl_none"),
        ({"dataset_id": "dst_none"}, "/dataset_id", "dst_none"),
        ({"seed": -1}, "/seed", ""),
        ({"colour": "red"}, "/colour", ""),
    ],
)
def test_jobs_that_make_no_sense_are_refused(
    api: World, changes: dict[str, Any], pointer: str, word: str
) -> None:
    document = assert_problem(post(api, **changes), 422, "validation", pointer)
    message = next(e["message"] for e in document["errors"] if e["pointer"] == pointer)
    assert word in message


def test_all_faults_are_told_at_once(api: World) -> None:
    answer = post(
        api,
        objectives=[{"metric": "nope"}],
        agent={"name": "nobody"},
        budget={},
        constraints=[{"metric": "macs", "at_most": -1}],
    )
    pointers = ("/objectives/0/metric", "/agent/name", "/budget", "/constraints/0/at_most")
    assert_problem(answer, 422, "validation", *pointers)


def test_data_that_does_not_fit_the_model_is_refused(api: World) -> None:
    for summary, word in (
        ({"image_shape": [1, 8, 8]}, "[1, 8, 8]"),
        ({"num_classes": 11}, "labels up to 10"),
        ({"labelled": False}, "agreement"),
    ):
        answer = post(api, dataset_id=api.store_dataset(summary))
        document = assert_problem(answer, 422, "validation", "/dataset_id")
        assert word in document["detail"]
    unlabelled = api.store_dataset({"labelled": False, "splits": {"train": 9}})
    objectives = [{"metric": "agreement"}]
    assert post(api, dataset_id=unlabelled, objectives=objectives).status_code == 202


def test_models_and_data_must_be_ready(api: World) -> None:
    answer = post(api, model_id=api.store_model(ready=False))
    assert_problem(answer, 409, "not-ready")
    assert answer.headers["retry-after"]
    assert_problem(post(api, dataset_id=api.store_dataset(ready=False)), 409, "not-ready")
    refused = api.store_model(ready=False)
    with api.database.write() as session:
        models.set_rejected(session, refused, {"title": "No", "detail": "key 'w' is missing"})
    document = assert_problem(post(api, model_id=refused), 409, "rejected")
    assert document["rejection"]["detail"] == "key 'w' is missing"
    assert "key 'w' is missing" in document["detail"]
