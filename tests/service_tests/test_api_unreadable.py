"""A job that names a reading which its device never gives is refused before it spends a trial."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from search.device import LOCAL_DEVICES, DeviceSpec
from search.virtual_target import PROFILES
from service.measurable import no_reading
from tests.service_tests.api_world import DEVICE, World, assert_problem, world
from workers.meters.energy import energy_counter
from workers.meters.fingerprint import ENERGY_COUNTER

LOCAL = LOCAL_DEVICES[0]
VIRTUAL = "virtual/phone-core"
BOARD = DeviceSpec(name="board/kitchen", runtime="onnxruntime", place="agent")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
@pytest.mark.skipif(energy_counter() is not None, reason="this machine counts energy")
def test_energy_without_a_counter_is_refused(api: World, query: str) -> None:
    bound = {"metric": "energy_mj", "at_most": 0.5, "relative_to": "baseline", "device": DEVICE}
    body = api.job_body(constraints=[{"metric": "macs", "at_most": 2000000}, bound])
    answer = api.client.post(f"/api/v1/jobs{query}", json=body)
    document = assert_problem(answer, 422, "validation", "/constraints/1")
    for part in ("energy_mj", DEVICE, "no energy counter"):
        assert part in document["detail"]
    body = api.job_body(objectives=[{"metric": "top1"}, {"metric": "energy_mj", "device": DEVICE}])
    answer = api.client.post(f"/api/v1/jobs{query}", json=body)
    assert_problem(answer, 422, "validation", "/objectives/1")


def test_what_a_virtual_target_does_not_estimate_is_refused(api: World) -> None:
    bound = {"metric": "load_ms", "at_most": 5, "device": VIRTUAL}
    answer = api.client.post("/api/v1/jobs", json=api.job_body(constraints=[bound]))
    document = assert_problem(answer, 422, "validation", "/constraints/0")
    assert f"load_ms of {VIRTUAL} is not estimated" in document["detail"]


def test_only_latency_has_tails(api: World) -> None:
    bound = {"metric": "load_ms", "at_most": 5, "device": DEVICE, "statistic": "p95"}
    answer = api.client.post("/api/v1/jobs", json=api.job_body(constraints=[bound]))
    document = assert_problem(answer, 422, "validation", "/constraints/0")
    assert "p50 only, not p95" in document["detail"]
    assert no_reading("latency_ms", "p95", LOCAL) is None
    assert no_reading("latency_ms", "p95", PROFILES[VIRTUAL].device) is None


def test_a_counter_on_the_machine_or_on_the_board_is_enough() -> None:
    assert no_reading("energy_mj", "p50", LOCAL, counter=lambda: "rapl") is None
    refused = no_reading("energy_mj", "p50", LOCAL, counter=lambda: None)
    assert refused is not None
    assert LOCAL.name in refused
    refused = no_reading("energy_mj", "p50", BOARD, counter=lambda: "rapl")
    assert refused is not None
    assert BOARD.name in refused
    counting = DeviceSpec(
        name="board/kitchen",
        runtime="onnxruntime",
        place="agent",
        hardware=((ENERGY_COUNTER, "rapl"),),
    )
    assert no_reading("energy_mj", "p50", counting, counter=lambda: None) is None
