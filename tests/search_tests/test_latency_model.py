"""The latency model: shapes, exact lookup, monotonicity, coverage, what it refuses to tell."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.cost import CostTable
from compression.decisions import (
    Decision,
    DropBlock,
    Factorize,
    FactorizeMethod,
    PruneChannels,
    Quantize,
    Sparsify,
)
from compression.layer_cost import LayerCost
from compression.plan import Plan
from search.latency.conformal import jackknife_plus
from search.latency.features import BLOCK, features
from search.latency.fit import Design, weights
from search.latency.model import LEAST, LatencyModel
from search.latency.observation import Observation, observed, pooled
from search.latency.shape import deployed_shapes, signature
from search.measurement import Interval, Measured, Measurement, Reading
from search.trial import Fidelity, Trial, TrialState

BLOCKS = 4
WIDTH = 64


def _conv(name: str, site: str, *, first: bool) -> LayerCost:
    tie = ((site, 1),)
    return LayerCost(
        name=name,
        op="conv",
        in_channels=WIDTH,
        out_channels=WIDTH,
        kernel=9,
        positions=64,
        window=(3, 3),
        grid_in=(8, 8),
        grid_out=(8, 8),
        out_ties=tie if first else (),
        in_ties=() if first else tie,
    )


def _network() -> CostTable:
    """Equal residual blocks, whose inner widths are sites, and a classifier."""
    layers = []
    for number in range(BLOCKS):
        site = f"block{number}.conv1"
        layers += [
            _conv(site, site, first=True),
            _conv(f"block{number}.conv2", site, first=False),
        ]
    layers.append(LayerCost(name="fc", op="linear", in_channels=WIDTH, out_channels=10, bias=True))
    return CostTable(tuple(layers), {f"block{number}.conv1": WIDTH for number in range(BLOCKS)})


COSTS = _network()


def plan_of(widths: list[int], *, int8: bool = False, dropped: tuple[int, ...] = ()) -> Plan:
    decisions: dict[str, list[Decision]] = {"model": [Quantize()] if int8 else []}
    for number, width in enumerate(widths):
        if number in dropped:
            decisions[f"block{number}"] = [DropBlock()]
        elif width < WIDTH:
            decisions[f"block{number}.conv1"] = [PruneChannels(keep_channels=width)]
    return Plan.of(decisions)


def true_ratio(plan: Plan, load: float = 0.0) -> float:
    """A device that computes on whole blocks, and INT8 three times as fast when it is idle."""
    total = {True: 0.0, False: 0.0}
    for shape in deployed_shapes(COSTS, plan):
        n_in, n_out = (-(-n // BLOCK) * BLOCK for n in (shape.in_channels, shape.out_channels))
        total[shape.int8] += 20000 + n_in * n_out * shape.kernel * shape.positions
    return 0.05 + 0.95 * (total[False] + total[True] * (1 + load) / 3) / DENSE_UNITS


DENSE_UNITS = sum(
    20000
    + (-(-s.in_channels // BLOCK) * BLOCK)
    * (-(-s.out_channels // BLOCK) * BLOCK)
    * s.kernel
    * s.positions
    for s in deployed_shapes(COSTS, Plan())
)


def seen(plan: Plan, ratio: float, dense_ms: float = 1.0) -> Observation:
    interval = Interval(value=ratio, low=0.98 * ratio, high=1.02 * ratio)
    return Observation(plan=plan, ratio=interval, dense_ms=dense_ms)


def drawn(count: int, seed: int, noise: float = 0.0, *, loads: bool = False) -> list[Observation]:
    """Random plans, a half of them in INT8, on a machine that is loaded in a half of the cases."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        widths = [4 * int(width) for width in rng.integers(1, WIDTH // 4 + 1, BLOCKS)]
        dropped = tuple(np.flatnonzero(rng.random(BLOCKS) < 0.15).tolist())
        plan = plan_of(widths, int8=bool(number % 2), dropped=dropped)
        load = float(rng.random() < 0.5) if loads else 0.0
        ratio = true_ratio(plan, load) * math.exp(noise * rng.standard_normal())
        found.append(seen(plan, ratio, dense_ms=1 + 0.3 * load))
    return found


@pytest.mark.parametrize("method", ["channel", "spatial", "tucker2", "cp", "kronecker"])
def test_shapes_have_the_multiply_adds_of_the_cost_table(method: FactorizeMethod) -> None:
    split = Factorize(method=method, rank_ratio=0.5)
    plan = plan_of([64, 24, 12, 64], dropped=(3,)).with_decision("block0.conv2", split)
    plan = plan.with_decision("block1.conv1", split)
    assert sum(shape.macs for shape in deployed_shapes(COSTS, plan)) == COSTS.cost(plan).macs


def test_depthwise_layers_keep_one_input_per_output() -> None:
    layer = LayerCost(
        name="dw",
        op="conv",
        in_channels=32,
        out_channels=32,
        kernel=9,
        positions=16,
        groups=32,
        in_ties=(("dw", 1),),
        out_ties=(("dw", 1),),
    )
    costs = CostTable((layer,), {"dw": 32})
    (shape,) = deployed_shapes(costs, Plan.of({"dw": [PruneChannels(keep_channels=8)]}))
    assert (shape.groups, shape.macs) == (8, 8 * 9 * 16)


def test_equal_networks_have_equal_signatures_whatever_the_plan_says() -> None:
    wide = [WIDTH] * BLOCKS
    assert signature(COSTS, plan_of(wide, dropped=(0,))) == signature(
        COSTS, plan_of(wide, dropped=(2,))
    )
    by_norm = Plan.of({"block0.conv1": [PruneChannels(keep_channels=8, selector="l1")]})
    assert signature(COSTS, by_norm) == signature(COSTS, plan_of([8, 64, 64, 64]))
    different = [
        plan_of(wide),
        plan_of([8, 64, 64, 64]),
        plan_of([64, 8, 64, 64]),
        plan_of(wide, int8=True),
        plan_of(wide, dropped=(0, 1)),
        Plan.of({"block0.conv1": [Sparsify(sparsity=0.5)]}),
        Plan.of({"model": [Quantize(keep_float=("fc",))]}),
        Plan.of({"model": [Quantize(keep_float=("block0/Add",))]}),
    ]
    assert len({signature(COSTS, plan) for plan in different}) == len(different)


def test_a_measured_network_is_looked_up_and_its_readings_are_pooled() -> None:
    wide = [WIDTH] * BLOCKS
    first, second = plan_of(wide, dropped=(0,)), plan_of(wide, dropped=(1,))
    model = LatencyModel(COSTS, [seen(first, 0.8), seen(second, 0.9)])
    assert not model.calibrated
    found = model.foretell(plan_of(wide, dropped=(3,)))
    assert found is not None
    assert found.measured == 2
    assert not found.calibrated
    assert found.ratio.value == pytest.approx(math.sqrt(0.8 * 0.9))
    assert (found.ratio.low, found.ratio.high) == pytest.approx((0.98 * 0.8, 1.02 * 0.9))
    assert model.foretell(plan_of([8] * BLOCKS)) is None


def test_a_lookup_stays_exact_beside_a_prediction() -> None:
    known = drawn(30, seed=0)
    found = LatencyModel(COSTS, known).foretell(known[7].plan)
    assert found is not None
    assert found.measured >= 1
    assert found.calibrated
    assert found.ratio.value == pytest.approx(known[7].ratio.value)


def test_unseen_plans_are_predicted_after_thirty_measurements() -> None:
    model = LatencyModel(COSTS, drawn(30, seed=0, noise=0.02))
    errors = []
    for other in drawn(100, seed=1):
        found = model.foretell(other.plan)
        assert found is not None
        errors.append(abs(found.ratio.value / other.ratio.value - 1))
    assert np.median(errors) < 0.05


def test_the_load_of_the_machine_is_told_from_the_dense_time() -> None:
    model = LatencyModel(COSTS, drawn(40, seed=0, noise=0.01, loads=True))
    at_load, at_any = [], []
    for other in drawn(100, seed=1, loads=True):
        told = model.foretell(other.plan, other.dense_ms)
        blind = model.foretell(other.plan)
        assert told is not None
        assert blind is not None
        at_load.append(abs(told.ratio.value / other.ratio.value - 1))
        at_any.append(blind.ratio.low <= other.ratio.value <= blind.ratio.high)
    assert np.median(at_load) < 0.05
    assert np.mean(at_any) > 0.95


def test_intervals_cover_what_they_promise() -> None:
    covered = []
    for seed in range(4):
        model = LatencyModel(COSTS, drawn(45, seed=seed, noise=0.05))
        for other in drawn(60, seed=100 + seed, noise=0.05):
            found = model._predict(other.plan, None)
            assert found is not None
            covered.append(found.low <= other.ratio.value <= found.high)
    assert np.mean(covered) >= 0.95


def test_few_observations_or_an_unknown_way_of_computing_foretell_nothing() -> None:
    known = [o for o in drawn(80, seed=0) if o.plan.quantize() is None]
    new = plan_of([32, 36, 40, 44])
    assert LatencyModel(COSTS, known[: LEAST - 1]).foretell(new) is None
    model = LatencyModel(COSTS, known[:LEAST])
    assert model.calibrated
    assert model.foretell(new) is not None
    assert model.foretell(plan_of([32, 36, 40, 44], int8=True)) is None


def test_the_dense_network_teaches_nothing_and_is_held_at_one() -> None:
    known = drawn(30, seed=0, noise=0.02)
    model = LatencyModel(COSTS, [seen(Plan(), 7.0), *known])
    dense = model.foretell(Plan())
    assert dense is not None
    assert dense.ratio.value == pytest.approx(1.0, abs=0.02)


MODELS = [LatencyModel(COSTS, drawn(25, seed=seed, noise=0.2, loads=True)) for seed in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    which=st.sampled_from(range(len(MODELS))),
    widths=st.lists(st.integers(1, WIDTH), min_size=BLOCKS, max_size=BLOCKS),
    more=st.lists(st.integers(0, WIDTH), min_size=BLOCKS, max_size=BLOCKS),
    int8=st.booleans(),
    dense_ms=st.floats(1.0, 1.5),
)
def test_more_channels_of_the_same_alignment_never_take_less_time(
    which: int, widths: list[int], more: list[int], int8: bool, dense_ms: float
) -> None:
    wider = [
        grown if (grown % BLOCK == 0) == (width % BLOCK == 0) else width
        for width, grown in zip(
            widths, (min(WIDTH, w + m) for w, m in zip(widths, more, strict=True)), strict=True
        )
    ]
    narrow = MODELS[which]._predict(plan_of(widths, int8=int8), dense_ms)
    wide = MODELS[which]._predict(plan_of(wider, int8=int8), dense_ms)
    assert narrow is not None
    assert wide is not None
    assert wide.value >= narrow.value - 1e-9
    assert 0 < narrow.low <= narrow.value <= narrow.high


def test_weights_are_not_negative_and_follow_the_prior_without_observations() -> None:
    dense = features(deployed_shapes(COSTS, Plan()))
    design = Design.of(dense, [])
    none = weights(design, np.zeros((0, len(design.dense))), np.zeros(0))
    assert none == pytest.approx(design.prior, abs=1e-6)
    assert none @ design.dense == pytest.approx(1.0)
    known = drawn(30, seed=0, noise=0.3)
    found = [features(deployed_shapes(COSTS, o.plan)) for o in known]
    design = Design.of(dense, found)
    rows = np.array([design.row(f, 0.0) for f in found])
    assert (weights(design, rows, np.array([o.ratio.value for o in known])) >= 0).all()


def test_jackknife_plus_by_hand() -> None:
    predictions, residuals = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.1, 0.2])
    # alpha 1/2 of 3: rank ceil(4 / 2) = 2, counted from either end of the sums.
    assert jackknife_plus(predictions, residuals, 0.5) == pytest.approx((1.9, 2.1))
    # Too few for 2.5 %: the widest.
    assert jackknife_plus(predictions, residuals, 0.025) == pytest.approx((0.5, 3.2))
    with pytest.raises(ValueError, match="3 predictions and 2 residuals"):
        jackknife_plus(predictions, residuals[:2], 0.5)


def test_only_measured_times_of_the_job_s_own_model_are_observations() -> None:
    reading = Reading(
        metric="latency_ms",
        value=3.0,
        low=2.9,
        high=3.1,
        device="local/onnxruntime",
        statistic="p50",
        ratio=Interval(value=0.75, low=0.7, high=0.8),
    )
    trial = Trial(
        id="trl_1",
        number=1,
        plan=plan_of([8] * BLOCKS),
        fidelity=Fidelity.PROXY,
        seed=0,
        agent="random",
        state=TrialState.MEASURED,
        outcome=Measured(Measurement((reading,))),
    )
    assert reading.ratio is not None
    found = observed(trial, "local/onnxruntime", "p50")
    assert found is not None
    assert found == Observation(plan=trial.plan, ratio=reading.ratio, dense_ms=4.0)
    assert observed(trial, "local/onnxruntime", "p95") is None
    guess = Measured(Measurement((dataclasses.replace(reading, estimated=True),)))
    assert observed(dataclasses.replace(trial, outcome=guess), "local/onnxruntime", "p50") is None
    assert pooled([found]) == reading.ratio
