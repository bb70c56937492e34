from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from compression.cost import CostTable
from compression.decisions import DECISIONS
from compression.layer_cost import LayerCost
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.space import Knob, PlanSpace
from search.amc.clamp import Clamp
from search.amc.rewards import Reward, error, mode_for
from search.amc.state import Walk, tried_settings
from search.objective import Constraint
from search.problem import Problem
from search.repair import Repair
from tests.builders import surveyed_resnet
from tests.synthetic import (
    LATENCY,
    TOP1,
    Net,
    download_at_most,
    latency_at_most,
    macs_at_most,
    top1_at_least,
)

AMC_MOBILENET = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
"""Inputs of each 1 x 1 convolution and of the classifier in the published policy for half the
FLOPs: so many outputs of the convolution before it stay."""


def mobilenet() -> CostTable:
    """MobileNetV1 at 224 x 224, without BatchNorm: a stem, 13 separable blocks, a classifier."""
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    side, before, site = 112, 32, "stem"
    layers = [LayerCost(name="stem", op="conv", in_channels=3, out_channels=32, kernel=9,
                        positions=side**2, out_ties=(("stem", 1),))]  # fmt: skip
    channels = {"stem": 32}
    for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
        side //= stride
        tie = ((site, 1),)
        layers.append(LayerCost(name=f"dw{i}", op="conv", in_channels=before, out_channels=before,
                                kernel=9, positions=side**2, groups=before, in_ties=tie,
                                out_ties=tie))  # fmt: skip
        site = f"pw{i}"
        layers.append(LayerCost(name=site, op="conv", in_channels=before, out_channels=width,
                                positions=side**2, in_ties=tie,
                                out_ties=((site, 1),)))  # fmt: skip
        channels[site] = before = width
    layers.append(LayerCost(name="fc", op="linear", in_channels=1024, out_channels=1000, bias=True,
                            in_ties=((site, 1),)))  # fmt: skip
    return CostTable(tuple(layers), channels)


def mobilenet_problem(*constraints: Constraint) -> Problem:
    costs = mobilenet()
    knobs = tuple(
        Knob(site=site, field="keep_channels", choices=tuple(range(8, n + 1, 8)), ordered=True)
        for site, n in costs.site_channels.items()
    )
    problem = dataclasses.replace(Net().problem(), space=PlanSpace(knobs), costs=costs)
    baseline = problem.arithmetic(Plan())
    return dataclasses.replace(problem, constraints=constraints, baseline=baseline)


def walk_of(problem: Problem, lbound: float = 0.2, *, bits: bool = False) -> Walk:
    repair = Repair(problem)
    return Walk(problem, repair, Clamp(repair, lbound), bits=bits)


def walked(walk: Walk, actions: list[float]) -> list[int]:
    point = walk.start((0,) * len(walk.settings))
    for t, action in enumerate(actions):
        point[walk.steps[t].column] = walk.decide(point, t, action)
    return point


def random_problem(rng: np.random.Generator) -> Problem:
    """A made-up chain or separable net with random widths, grids and bounds."""
    depth = int(rng.integers(2, 7))
    layers: list[LayerCost] = []
    channels: dict[str, int] = {}
    before, site = 3, ""
    for i in range(depth):
        # A residual stage: several layers share one site.
        shared = bool(site) and rng.random() < 0.3 and i > 1
        width = before if shared else int(rng.integers(2, 40))
        name = site if shared else f"c{i}"
        ties = ((site, 1),) if site else ()
        layers.append(LayerCost(name=f"c{i}", op="conv", in_channels=before, out_channels=width,
                                kernel=int(rng.choice([1, 9])), positions=int(rng.integers(1, 99)),
                                bias=bool(rng.random() < 0.5), in_ties=ties,
                                out_ties=((name, 1),)))  # fmt: skip
        channels[name] = before = width
        site = name
    layers.append(LayerCost(name="fc", op="linear", in_channels=before, out_channels=10,
                            in_ties=((site, 1),)))  # fmt: skip
    knobs = tuple(
        Knob(site=s, field="keep_channels", ordered=True,
             choices=(*range(1, n, int(rng.integers(1, 4))), n))
        for s, n in channels.items()
    )  # fmt: skip
    costs = CostTable(tuple(layers), channels)
    problem = dataclasses.replace(Net().problem(), space=PlanSpace(knobs), costs=costs)
    bounds = [macs_at_most(float(rng.uniform(0.05, 1.0)))]
    if rng.random() < 0.5:
        limit = float(rng.uniform(0.05, 1.0))
        bounds.append(Constraint(metric="params", at_most=limit, relative_to="baseline"))
    baseline = problem.arithmetic(Plan())
    return dataclasses.replace(problem, constraints=tuple(bounds), baseline=baseline)


def test_clamped_plans_keep_every_bound_that_the_floors_keep() -> None:
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(1250):
        problem = random_problem(rng)
        walk = walk_of(problem, lbound=float(rng.uniform(0.01, 0.5)))
        floor = problem.arithmetic_violation(problem.space.decode(problem.space.smallest()))
        for _ in range(8):
            level = rng.uniform(0.2, 3.0)
            plan = problem.space.decode(walked(walk, list(rng.random(len(walk.steps)) ** level)))
            assert floor > 0 or problem.arithmetic_violation(plan) == 0
            kept += floor == 0
    assert kept > 5000


def test_the_clamp_is_the_papers_formula_where_costs_are_linear() -> None:
    problem = Net(d=4, multiple=1, quantize=False).problem([macs_at_most(0.5)])
    walk = walk_of(problem, lbound=0.2)
    widths = list(problem.costs.site_channels.values())
    inputs = [16, *widths[:-1]]
    per_channel = [9 * 1024 / (w // 16) ** 2 * (i + w) for w, i in zip(widths, inputs, strict=True)]
    dense = problem.costs.cost(Plan()).macs
    fixed = dense - sum(p * w for p, w in zip(per_channel, widths, strict=True))
    grids = [np.array(k.choices) for k in problem.space.knobs]
    floors = [int(g[g >= 0.2 * w].min()) for g, w in zip(grids, widths, strict=True)]
    point = walk.start(())
    decided: list[int] = []
    for t, grid in enumerate(grids):
        later = floors[t + 1 :]
        other = fixed + sum(
            p * n
            for i, (p, n) in enumerate(zip(per_channel, [*decided, 0, *later], strict=True))
            if i != t
        )
        most = (0.5 * dense - other) / per_channel[t]
        expected = int(max(floors[t], grid[grid <= most].max()))
        point[t] = walk.decide(point, t, 1.0)
        decided.append(int(grid[point[t]]))
        assert decided[-1] == expected
    assert decided[0] == widths[0]  # the first layers take the budget
    assert decided[-1] < widths[-1]


def test_a_floor_that_breaks_the_bound_gives_way() -> None:
    problem = Net(d=4).problem([macs_at_most(0.15)])
    repair = Repair(problem)
    assert set(Clamp(repair, 0.9).floors.values()) == {0}
    assert min(Clamp(Repair(Net(d=4).problem()), 0.9).floors.values()) > 0


def test_unclamped_widths_are_the_nearest_ones_not_below_the_floor() -> None:
    problem = Net(d=4, multiple=2, quantize=False).problem()
    walk = walk_of(problem, lbound=0.5)
    point = walk.start(())
    choices = problem.space.knobs[0].choices
    assert choices[walk.decide(point, 0, 0.80, clamped=False)] == 12
    assert choices[walk.decide(point, 0, 0.05, clamped=False)] == 8
    assert choices[walk.decide(point, 0, 1.0, clamped=False)] == 16


def test_the_published_policy_for_mobilenet_costs_what_its_channels_say() -> None:
    problem = mobilenet_problem(macs_at_most(0.52))
    assert problem.costs.cost(Plan()).macs == 568_740_352
    walk = walk_of(problem)
    channels = problem.costs.site_channels
    published = dict(zip(channels, AMC_MOBILENET, strict=True))
    plan = problem.space.decode(walked(walk, [published[s] / n for s, n in channels.items()]))
    # Half is meant; multiply-adds of all convolutions and the classifier are 51.7 %.
    assert problem.costs.cost(plan).macs == 293_870_000
    assert problem.arithmetic_violation(plan) == 0
    assert {s: d.keep_channels for s, d in plan.prune_channels().items()} == published
    # Under exactly half, the same wishes are met but for the last layer's.
    tight = mobilenet_problem(macs_at_most(0.5))
    plan = tight.space.decode(
        walked(walk_of(tight), [published[s] / n for s, n in channels.items()])
    )
    kept = {s: d.keep_channels for s, d in plan.prune_channels().items()}
    assert kept == {**published, "pw12": 488}
    assert 0.49 < tight.costs.cost(plan).macs / 568_740_352 <= 0.5


def test_states_are_the_papers_features_within_the_unit_interval() -> None:
    _, survey = surveyed_resnet(20)
    space = resolve_space(
        survey.sites, Methods(allow=("prune_channels",), channel_multiple=2), survey.costs
    )
    problem = dataclasses.replace(Net().problem(), space=space, costs=survey.costs)
    walk = walk_of(problem)
    assert walk.features == 11
    point = walked(walk, [0.5] * len(walk.steps))
    episode = walk.walked(point)
    assert episode.states.shape == (len(walk.steps), 11)
    assert episode.states.min() >= 0
    assert episode.states.max() <= 1
    np.testing.assert_allclose(episode.states[:, 0], np.linspace(0, 1, len(walk.steps)))
    dense = survey.costs.cost(Plan()).macs
    for t in (0, 3, len(walk.steps) - 1):
        before = list(space.dense())
        before[:t] = point[:t]
        macs = survey.costs.cost(space.decode(before)).macs
        assert episode.states[t, 8] == pytest.approx(1 - macs / dense, abs=1e-12)
        np.testing.assert_array_equal(walk.state(point, t), episode.states[t])
    assert episode.states[-1, 9] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(episode.states[1:, 10], episode.actions[:-1])
    assert episode.states[0, 10] == 1.0


def test_states_can_name_their_step() -> None:
    problem = Net(d=4, quantize=False).problem()
    repair = Repair(problem)
    walk = Walk(problem, repair, Clamp(repair, 0.2), one_hot=True)
    states = walk.walked(problem.space.dense()).states
    assert states.shape == (4, walk.features) == (4, 15)
    np.testing.assert_array_equal(states[:, 11:], np.eye(4))


def test_rest_is_the_share_of_later_sites() -> None:
    net = Net(d=2, quantize=False)
    walk = walk_of(net.problem())
    rows = {layer.name: layer for layer in net.costs.layers}
    later = rows["b1.conv1"]
    macs = later.out_channels * later.in_channels * later.kernel * later.positions
    states = walk.walked(net.space.dense()).states
    assert states[0, 9] == pytest.approx(macs / net.costs.cost(Plan()).macs)


def test_bits_are_actions_over_the_whole_range_of_choices() -> None:
    space = PlanSpace(
        (
            Knob(site="c", field="keep_channels", choices=(4, 8), ordered=True),
            Knob(site="c", field="quantize_weights", choices=("none", "8", "4", "2"),
                 ordered=True),
            Knob(site=MODEL_SITE, field="precision", choices=("none", "int8"), ordered=False),
        )
    )  # fmt: skip
    layer = LayerCost(name="c", op="conv", in_channels=3, out_channels=8, out_ties=(("c", 1),))
    problem = dataclasses.replace(Net().problem(), space=space, costs=CostTable((layer,), {"c": 8}))
    without = walk_of(problem)
    assert [problem.space.knobs[s.column].field for s in without.steps] == ["keep_channels"]
    assert without.settings == (2,)
    assert tried_settings(without, problem) == [(0,), (1,)]
    walk = walk_of(problem, bits=True)
    assert [space.knobs[s.column].field for s in walk.steps] == [
        "precision", "keep_channels", "quantize_weights",
    ]  # fmt: skip
    assert walk.features == 12
    start = walk.start(())
    chosen = [space.knobs[1].choices[walk.decide(start, 2, a)] for a in (0, 0.26, 0.51, 0.76, 1)]
    assert chosen == ["2", "4", "8", "none", "none"]
    assert space.knobs[2].choices[walk.decide(start, 0, 0.3)] == "int8"
    for index in range(4):
        point = (1, index, 0)
        assert walk.decide(start, 2, float(walk.applied(point)[2])) == index


def test_plans_with_other_decisions_are_not_episodes() -> None:
    _, survey = surveyed_resnet(20)
    space = resolve_space(survey.sites, Methods(allow=tuple(DECISIONS)), survey.costs)
    problem = dataclasses.replace(Net().problem(), space=space, costs=survey.costs)
    walk = walk_of(problem)
    assert walk.is_walkable(space.dense())
    other = next(i for i, k in enumerate(space.knobs) if k.field == "drop_block")
    dropped = list(space.dense())
    dropped[other] = 1
    assert not walk.is_walkable(dropped)


def test_rewards() -> None:
    net = Net(d=4)
    plan = net.space.decode(net.space.uniform(0.5))
    problem = net.problem([macs_at_most(0.9), latency_at_most(0.2), top1_at_least(0.0)])
    measurement = net.measurement(plan)
    wrong = 1 - net.top1(plan)
    assert error(problem, measurement) == pytest.approx(wrong)
    missed = [max(0.0, v) for v in problem.violations(measurement)]
    extra = 2.0 * (math.log1p(missed[1]) + math.log1p(missed[2]))
    assert missed[1] > 0 < missed[2]
    assert Reward(problem, "budget", penalty=2.0).of(plan, measurement) == pytest.approx(
        -(wrong + extra)
    )
    free = net.problem()
    cost = net.costs.cost(plan)
    assert Reward(free, "guarantee").of(plan, measurement) == pytest.approx(
        -wrong * math.log(cost.macs)
    )
    assert Reward(free, "guarantee", "params").of(plan, measurement) == pytest.approx(
        -wrong * math.log(cost.params)
    )
    assert Reward(free, "budget").of(plan, None) == -1.0
    assert Reward(problem, "budget").of(plan, None) == pytest.approx(-1 - 2 * math.log(2))


def test_other_objectives_have_the_dense_model_as_their_unit() -> None:
    net = Net(d=4)
    plan = net.space.decode(net.space.uniform(0.5))
    problem = net.problem(objectives=(LATENCY, TOP1))
    ratio = net.latency_ms(plan) / net.latency_ms(Plan())
    assert error(problem, net.measurement(plan)) == pytest.approx(ratio)


def test_the_mode_follows_the_bounds() -> None:
    net = Net(d=4)
    assert mode_for(net.problem()) == "guarantee"
    assert mode_for(net.problem([top1_at_least(-0.02)])) == "guarantee"
    assert mode_for(net.problem([download_at_most(0.5)])) == "budget"
    assert mode_for(net.problem([macs_at_most(0.5)])) == "budget"
