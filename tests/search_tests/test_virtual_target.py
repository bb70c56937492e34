"""Virtual targets: the roofline by hand, what does not fit, and that estimates say so."""

from __future__ import annotations

import dataclasses

import pytest

from compression.cost import CostTable
from compression.decisions import PruneChannels, Quantize
from compression.layer_cost import LayerCost
from compression.plan import Plan
from search.device import DeviceSpec
from search.front import ParetoFront
from search.measurement import Measured, Measurement, Reading
from search.objective import Objective
from search.trial import Fidelity, Trial, TrialState
from search.virtual_target import (
    ASSUMED,
    PROFILES,
    VIRTUAL_TARGETS,
    VirtualTarget,
    estimate,
    estimated_readings,
    misfit,
)
from tests.synthetic import Net

DEVICE = "virtual/toy"

TARGET = VirtualTarget(
    name="virtual/toy",
    summary="A thousand MACs per ms in float32, ten times as many in INT8, 100 bytes per ms.",
    flash_bytes=2000,
    ram_bytes=1000,
    int8_macs_per_s=1e7,
    float_macs_per_s=1e6,
    bytes_per_s=1e5,
    overhead_ms=2.0,
    sources={"flash_bytes": "a data sheet", "overhead_ms": ASSUMED + "made up"},
)

COSTS = CostTable(
    (
        # 8 x 4 weights at 10 positions: 320 MACs; 4 x 10 + 8 x 10 elements.
        LayerCost(
            name="first",
            op="conv",
            in_channels=4,
            out_channels=8,
            positions=10,
            grid_in=(2, 5),
            grid_out=(2, 5),
            out_ties=(("first", 1),),
        ),
        # 5000 x 8 weights at 1 position: 40,000 MACs; 8 + 5000 elements.
        LayerCost(
            name="last", op="linear", in_channels=8, out_channels=5000, in_ties=(("first", 1),)
        ),
    ),
    {"first": 8},
)

SMALL = CostTable((COSTS.layers[0],), {"first": 8})
INT8 = Plan.of({"model": [Quantize()]})


def test_time_is_the_longer_of_compute_and_traffic_per_layer_plus_the_calls() -> None:
    # First layer: 0.32 ms of compute, (120 + 32) x 4 / 100 = 6.08 ms of traffic.
    # Last layer: 40 ms of compute, (5008 + 40000) x 4 / 100 = 1800.32 ms of traffic.
    found = estimate(COSTS, Plan(), TARGET).latency_ms
    assert found.low == pytest.approx(6.08 + 1800.32)
    assert found.value == pytest.approx(6.08 + 1800.32 + 2 * 2.0)
    assert found.high == pytest.approx(6.08 + 1800.32 + 0.32 + 40 + 2 * 2.0)
    quick = dataclasses.replace(TARGET, bytes_per_s=1e12)
    assert estimate(COSTS, Plan(), quick).latency_ms.low == pytest.approx(0.32 + 40)


def test_int8_has_its_own_speed_and_a_quarter_of_the_bytes() -> None:
    found = estimate(SMALL, INT8, TARGET)
    assert found.latency_ms.value == pytest.approx(152 / 100 + 2.0)
    assert found.weight_bytes == 32 + 4 * 8
    assert found.activation_bytes == 120
    dense = estimate(SMALL, Plan(), TARGET)
    assert (dense.weight_bytes, dense.activation_bytes) == (4 * 32 + 4 * 8, 480)


def test_fewer_channels_take_less() -> None:
    half = Plan.of({"first": [PruneChannels(keep_channels=4)]})
    found, dense = (estimate(COSTS, plan, TARGET) for plan in (half, Plan()))
    assert found.latency_ms.value < dense.latency_ms.value
    assert found.weight_bytes < dense.weight_bytes
    # 4 x 4 weights, and 4 outputs instead of 8 in either layer.
    assert found.weight_bytes == 4 * (16 + 4 * 5000) + 4 * (4 + 5000)


def test_what_does_not_fit_says_by_how_much() -> None:
    assert misfit(SMALL, Plan(), TARGET) is None
    flash = misfit(COSTS, INT8, TARGET)
    # 32 + 40,000 weights of a byte, 8 + 5000 biases of four.
    assert flash == "The weights take 60,064 bytes; the flash of virtual/toy has 2,000"
    roomy = dataclasses.replace(TARGET, flash_bytes=None)
    ram = misfit(COSTS, INT8, roomy)
    assert ram == ("A layer's input and output take 5,008 bytes; the RAM of virtual/toy has 1,000")


def test_an_integer_target_turns_floats_down() -> None:
    strict = dataclasses.replace(TARGET, integers_only=True)
    assert misfit(SMALL, INT8, strict) is None
    reason = misfit(SMALL, Plan(), strict)
    assert reason is not None
    assert "8-bit integers only" in reason
    assert "1 of 1 layers" in reason
    partly = Plan.of({"model": [Quantize(keep_float=("first",))]})
    assert misfit(SMALL, partly, strict) is not None


def test_an_operation_that_the_target_lacks_is_named() -> None:
    convolutions = dataclasses.replace(TARGET, ops=("conv",))
    assert misfit(SMALL, Plan(), convolutions) is None
    assert misfit(COSTS, Plan(), convolutions) == "virtual/toy has no linear; it runs conv"


def test_every_reading_is_labelled_as_an_estimate_and_survives_json() -> None:
    readings = estimated_readings(SMALL, INT8, TARGET, ("p50", "p95"))
    assert {(r.metric, r.statistic) for r in readings} >= {
        ("latency_ms", "p50"),
        ("latency_ms", "p95"),
        ("throughput", "p50"),
    }
    for reading in readings:
        assert reading.estimated
        assert reading.warning
        assert reading.device == "virtual/toy"
        assert reading.ratio is not None
        assert Reading.from_json(reading.to_json()) == reading
    latency = next(r for r in readings if r.metric == "latency_ms")
    assert latency.ratio is not None
    # Dense: (120 + 32) x 4 / 100 + 2 = 8.08 ms.
    assert latency.ratio.value == pytest.approx(3.52 / 8.08)
    throughput = next(r for r in readings if r.metric == "throughput")
    assert throughput.value == pytest.approx(1000 / latency.value)


def test_the_dense_model_is_its_own_reference() -> None:
    for reading in estimated_readings(COSTS, Plan(), TARGET):
        assert reading.ratio is not None
        assert (reading.ratio.low, reading.ratio.value, reading.ratio.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_profiles_are_devices_of_their_own_place(name: str) -> None:
    target, device = PROFILES[name], VIRTUAL_TARGETS[name]
    assert name.startswith("virtual/")
    assert device.name == target.name == name
    assert device.place == "virtual"
    assert DeviceSpec.from_json(device.to_json()) == device
    assert target.int8_macs_per_s > target.float_macs_per_s > 0


FIGURES = {
    "flash_bytes",
    "ram_bytes",
    "int8_macs_per_s",
    "float_macs_per_s",
    "bytes_per_s",
    "overhead_ms",
}


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_figure_is_shown_with_its_source_or_as_an_assumption(name: str) -> None:
    target, shown = PROFILES[name], dict(VIRTUAL_TARGETS[name].hardware)
    assert set(target.sources) == FIGURES
    for figure, source in target.sources.items():
        assert shown[figure] == str(getattr(target, figure))
        assert shown[f"{figure} source"] == source
        assert len(source) > 20
    assert shown["assumed"] == ", ".join(target.assumed)
    assert "overhead_ms" in target.assumed
    assert TARGET.assumed == ("overhead_ms",)


def test_an_estimated_objective_puts_nothing_on_a_front() -> None:
    latency = Objective(metric="latency_ms", direction="minimize", device=DEVICE, statistic="p50")
    problem = dataclasses.replace(Net().problem(), objectives=(latency,), constraints=())
    trials = []
    for number, estimated in enumerate((True, False)):
        reading = Reading(
            metric="latency_ms",
            value=1.0 + number,
            low=1.0,
            high=3.0,
            device=DEVICE,
            statistic="p50",
            estimated=estimated,
        )
        trial = Trial(
            id=f"trl_{number}",
            number=number,
            plan=Plan.of({"first": [PruneChannels(keep_channels=1 + number)]}),
            fidelity=Fidelity.PROXY,
            seed=0,
            agent="random",
            state=TrialState.MEASURED,
            outcome=Measured(Measurement((reading,))),
        )
        trials.append(trial)
    assert [t.id for t in ParetoFront.of(problem, trials).members] == ["trl_1"]
