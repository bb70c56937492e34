"""What the server offers: metrics, devices, methods, agents, itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compression.decisions import DECISIONS
from search.catalogue import AGENTS, DEFAULT
from search.device import DeviceSpec
from search.metric import METRICS
from service.db import devices
from tests.service_tests.api_world import DEVICE, World, world


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


def test_metrics(api: World) -> None:
    found = api.client.get("/api/v1/metrics").json()["data"]
    assert [metric["name"] for metric in found] == list(METRICS)
    latency = next(metric for metric in found if metric["name"] == "latency_ms")
    assert latency["timed"] is True
    assert latency["unit"] == "ms"


def test_devices_are_the_local_ones_and_the_stored_ones(api: World) -> None:
    before = {d["name"]: d for d in api.client.get("/api/v1/devices").json()["data"]}
    assert before[DEVICE]["seen_at"] is None
    assert before[DEVICE]["place"] == "local"
    hardware = (("cpu", "test"),)
    with api.database.write() as session:
        devices.put(session, DeviceSpec(name=DEVICE, runtime="onnxruntime", hardware=hardware))
        devices.put(session, DeviceSpec(name="phone/a", runtime="onnxruntime", threads=4))
    found = {d["name"]: d for d in api.client.get("/api/v1/devices").json()["data"]}
    assert set(found) == {*before, "phone/a"}
    assert found[DEVICE]["hardware"] == {"cpu": "test"}
    assert api.client.get("/api/v1/devices/phone/a").json()["threads"] == 4


def test_methods(api: World) -> None:
    found = api.client.get("/api/v1/methods").json()
    assert [p["name"] for p in found["primitives"]] == [*DECISIONS]
    assert found["defaults"]["share"] == ["64", "16", "256 9"]
    assert found["defaults"]["channel_multiple"] == 8
    assert {s["name"] for s in found["selectors"]} >= {"l1", "l2"}


def test_agents(api: World) -> None:
    found = api.client.get("/api/v1/agents").json()
    assert found["auto"] == DEFAULT
    assert [agent["name"] for agent in found["data"]] == list(AGENTS)
    assert all(agent["summary"] for agent in found["data"])


def test_system(api: World) -> None:
    found = api.client.get("/api/v1/system").json()
    assert found["features"] == {"user_code": False, "api_keys": False}
    assert found["limits"]["max_trials"] == 10_000
    assert "torch" in found["versions"]
    assert "cifar_resnet56" in found["architectures"]
