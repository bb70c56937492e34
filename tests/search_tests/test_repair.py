from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.cost import CostTable
from compression.layer_cost import LayerCost
from compression.space import Knob, PlanSpace
from search.arithmetic import Arithmetic, as_points
from search.history import canonical, plan_count
from search.objective import Constraint
from search.problem import Problem
from search.repair import Repair, as_point
from search.sampling import design, draw, neighbours, spread
from tests.contracts.agent import all_points
from tests.synthetic import Net, latency_at_most, macs_at_most

NETS = [Net(d=4), Net(d=9, selectors=("l1", "l2")), Net(d=27, quantize=False)]


@pytest.mark.parametrize("net", NETS)
def test_costs_are_those_of_the_cost_table(net: Net) -> None:
    problem = net.problem()
    points = draw(problem.space, np.random.default_rng(0), 40)
    costs = Arithmetic(problem).costs(points)
    for row, point in enumerate(points):
        cost = problem.costs.cost(problem.space.decode(as_point(point)))
        assert (costs.macs[row], costs.params[row], costs.weight_bytes[row]) == (
            cost.macs,
            cost.params,
            cost.weight_bytes,
        )


def test_costs_of_grouped_depthwise_and_fixed_layers() -> None:
    tie = (("a", 1),)
    layers = (
        LayerCost(name="a", op="conv", in_channels=4, out_channels=8, kernel=9, positions=5,
                  bias=True, out_ties=tie),
        LayerCost(name="dw", op="conv", in_channels=8, out_channels=8, kernel=9, positions=5,
                  groups=8, in_ties=tie, out_ties=tie),
        LayerCost(name="grouped", op="conv", in_channels=8, out_channels=6, kernel=1,
                  positions=5, groups=2, in_ties=tie),
        LayerCost(name="flat", op="linear", in_channels=32, out_channels=10, bias=True,
                  in_ties=(("a", 4),)),
        LayerCost(name="bn", op="norm", in_channels=8, out_channels=8, params_per_channel=2,
                  in_ties=tie, out_ties=tie),
        LayerCost(name="rest", op="fixed", in_channels=0, out_channels=0, fixed_params=7),
    )  # fmt: skip
    space = PlanSpace(
        (
            Knob(site="a", field="keep_channels", choices=(2, 4, 8), ordered=True),
            Knob(site="model", field="precision", choices=("none", "int8"), ordered=False),
        )
    )
    table = CostTable(layers, {"a": 8, "unused": 3})
    problem = dataclasses.replace(Net().problem(), space=space, costs=table)
    points = as_points(all_points(space), 2)
    costs = Arithmetic(problem).costs(points)
    expected = [table.cost(space.decode(point)) for point in all_points(space)]
    assert costs.macs.tolist() == [c.macs for c in expected]
    assert costs.params.tolist() == [c.params for c in expected]
    assert costs.weight_bytes.tolist() == [c.weight_bytes for c in expected]


@pytest.mark.parametrize(
    "bound",
    [
        macs_at_most(0.4),
        Constraint(metric="macs", at_most=12e6),
        Constraint(metric="flops", at_most=-1e7, relative_to="baseline_difference"),
        Constraint(metric="params", at_least=0.3, relative_to="baseline"),
    ],
)
def test_violations_are_those_of_the_constraints(bound: Constraint) -> None:
    problem = Net().problem([latency_at_most(0.5), bound])
    points = draw(problem.space, np.random.default_rng(1), 30)
    arithmetic = Arithmetic(problem)
    for row, point in enumerate(points):
        plan = problem.space.decode(as_point(point))
        known = problem.arithmetic(plan)
        violation = bound.violation(known, problem.baseline)
        assert arithmetic.violations(points)[row, 0] == pytest.approx(violation, abs=1e-12)
        assert arithmetic.excess(points)[row] == pytest.approx(problem.arithmetic_violation(plan))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.15, 1.2))
def test_shrinking_keeps_the_bound_and_touches_only_what_breaks_it(seed: int, at: float) -> None:
    problem = Net(d=9).problem([macs_at_most(at)])
    repair = Repair(problem)
    points = draw(problem.space, np.random.default_rng(seed), 8)
    shrunk = repair.shrink(points)
    kept = repair.keeps_bounds(points)
    assert repair.keeps_bounds(shrunk).all()
    np.testing.assert_array_equal(shrunk[kept], points[kept])
    assert (shrunk[:, :9] <= points[:, :9]).all()
    np.testing.assert_array_equal(shrunk[:, 9:], points[:, 9:])
    np.testing.assert_array_equal(repair.shrink(shrunk), shrunk)


def test_shrinking_is_by_one_factor_and_stops_at_the_first_that_fits() -> None:
    net = Net(d=4, quantize=False)
    repair = Repair(net.problem([macs_at_most(0.5)]))
    space = repair.space
    dense = as_points([space.dense()], 4)
    shrunk = repair.shrink(dense)
    # No factor a little larger fits: every larger one gives this point or breaks the bound.
    for factor in np.linspace(0.05, 1.0, 400):
        scaled = repair.scaled(dense, np.array([factor]))
        if repair.keeps_bounds(scaled)[0]:
            assert (scaled <= shrunk).all()


def test_filling_grows_until_no_step_of_the_factor_fits() -> None:
    repair = Repair(Net(d=9, quantize=False).problem([macs_at_most(0.5)]))
    points = draw(repair.space, np.random.default_rng(2), 20)
    filled = repair.fill(points)
    assert repair.keeps_bounds(filled).all()
    before, after = (repair.arithmetic.costs(p).macs for p in (repair.shrink(points), filled))
    assert (after >= before).all()
    assert (
        np.median(after) > 0.47 * repair.arithmetic.costs(as_points([repair.space.dense()], 9)).macs
    )


def test_a_lower_bound_is_met_by_growing() -> None:
    floor = Constraint(metric="params", at_least=0.5, relative_to="baseline")
    repair = Repair(Net(d=9).problem([floor, macs_at_most(0.9)]))
    points = draw(repair.space, np.random.default_rng(3), 20)
    assert not repair.keeps_bounds(points).all()
    assert repair.keeps_bounds(repair.shrink(points)).mean() > 0.9


def test_an_unreachable_bound_gives_the_smallest_plan() -> None:
    repair = Repair(Net(d=4).problem([macs_at_most(0.001)]))
    assert not repair.reachable()
    shrunk = repair.shrink(as_points([repair.space.dense()], 5))
    assert as_point(shrunk[0])[:4] == repair.space.smallest()[:4]


def test_slack_loosens_a_bound_in_units_of_violation() -> None:
    repair = Repair(Net(d=9).problem([macs_at_most(0.4)]))
    dense = as_points([repair.space.dense()], 10)
    # Violation 0.5 of at most 0.4 is 0.6.
    share = (
        repair.arithmetic.costs(repair.shrink(dense, 0.5)).macs
        / repair.arithmetic.costs(dense).macs
    )
    assert 0.5 < share[0] <= 0.6


def test_spread_has_the_level_as_its_mean() -> None:
    space = Net(d=9, multiple=1, quantize=False).space
    rng = np.random.default_rng(4)
    for level in (0.2, 0.5, 0.8):
        points = spread(space, rng.random((4000, 9)), np.full(4000, level))
        shares = np.array([space.to_unit(point) for point in points])
        assert shares.mean() == pytest.approx(level, abs=0.02)


def test_designs_are_different_points_within_the_bounds() -> None:
    problem: Problem = Net(d=9).problem([macs_at_most(0.5)])
    repair = Repair(problem)
    points = design(repair, 7, 20)
    assert len(set(points)) == 20
    assert points == design(repair, 7, 20)
    assert points != design(repair, 8, 20)
    assert repair.keeps_bounds(as_points(points, 10)).all()


def test_neighbours_are_one_step_away() -> None:
    space = Net(d=4, selectors=("l1", "l2", "taylor")).space
    centre = space.sample(np.random.default_rng(5))
    around = neighbours(space, centre)
    assert ((around != np.array(centre)).sum(axis=1) == 1).all()
    ordered = np.array([knob.ordered for knob in space.knobs])
    assert (np.abs(around - np.array(centre))[:, ordered] <= 1).all()
    assert len({as_point(row) for row in around}) == len(around)


@pytest.mark.parametrize("selectors", [("l2",), ("l1", "l2", "taylor")])
def test_canonical_points_are_the_plans(selectors: tuple[str, ...]) -> None:
    whole = Net(d=4, selectors=selectors).space
    knobs = [
        dataclasses.replace(k, choices=k.choices[-3:]) if k.ordered else k for k in whole.knobs
    ]
    space = PlanSpace(tuple(knobs[1:]))
    for point in all_points(space):
        assert canonical(space, point) == space.encode(space.decode(point))
    plans = {space.decode(point).digest for point in all_points(space)}
    assert len(plans) == plan_count(space)
