from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.plan import Plan
from search.agent import Evaluate, Prepare
from search.agents.autocompress import Autocompress, Options
from search.annealing import (
    FAR,
    NEAR,
    acceptance,
    move_size,
    perturbed,
    sorted_by_size,
    start_temperature,
)
from search.errors import ProblemInvalid
from search.measurement import Measured
from search.problem import Problem
from search.reduction import Reduction, Target
from search.trial import PREPARED_ROLE, Trial
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import Loop, Net, latency_at_most, macs_at_most, wider


class TestAutocompress(AgentContract):
    name = "autocompress"
    waits = True
    options = MappingProxyType({"rounds": 2, "probes": 3, "guided": False})


def test_going_down_is_always_accepted_and_up_by_metropolis() -> None:
    assert acceptance(-3.0, 0.5) == acceptance(0.0, 0.0) == 1.0
    assert acceptance(2.0, 1.0) == pytest.approx(math.exp(-2.0))
    assert acceptance(1e-9, 0.0) == 0.0


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=15), st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_the_median_move_is_accepted_as_often_as_was_asked(
    changes: list[float], accepted: float
) -> None:
    temperature = start_temperature(changes, accepted)
    median = float(np.median(np.abs(changes)))
    if median > 1e-6:
        assert acceptance(median, temperature) == pytest.approx(accepted)


def test_with_four_fifths_the_temperature_is_the_median_over_0_223() -> None:
    assert start_temperature([1.0, -3.0, 2.0], 0.8) == pytest.approx(2.0 / 0.223, rel=1e-3)
    assert start_temperature([], 0.8) == 0.0


def test_moves_shrink_from_a_fifth_to_a_fiftieth() -> None:
    sizes = [move_size(step, 9) for step in range(12)]
    assert sizes[0] == FAR == 0.2
    assert sizes[8] == sizes[11] == pytest.approx(NEAR)
    np.testing.assert_allclose(np.array(sizes[1:9]) / sizes[:8], 0.1 ** (1 / 8))
    assert move_size(0, 1) == FAR


@given(st.integers(1, 40), st.integers(0, 999), st.sampled_from([0.02, 0.1, 0.2]))
@settings(max_examples=80, deadline=None)
def test_a_move_changes_a_third_to_a_half_of_the_rates_by_its_size(
    d: int, seed: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    rates = rng.random(d)
    moved = perturbed(rates, size, rng)
    changed = int((moved != rates).sum())
    assert changed <= max(1, math.ceil(0.5 * d))
    assert np.abs(moved - rates).max() <= size
    assert 0.0 <= moved.min() <= moved.max() <= 1.0
    if d >= 10 and 0.2 < rates.min() < rates.max() < 0.8:
        assert changed >= math.floor(0.3 * d)


def test_larger_layers_get_no_lower_rates() -> None:
    rates, sizes = np.array([0.1, 0.9, 0.5, 0.3]), np.array([40.0, 10.0, 30.0, 10.0])
    assert sorted_by_size(rates, sizes).tolist() == [0.9, 0.1, 0.5, 0.3]


def test_guided_moves_are_sorted_and_free_ones_are_not() -> None:
    problem = Net(d=9, quantize=False).problem((macs_at_most(0.4),))
    dense = problem.space.dense()
    for guided in (True, False):
        reduction = Reduction(problem, guided=guided)
        point = reduction.moved(dense, dense, 0.2, np.random.default_rng(0))
        widths = [k.choices for k in problem.space.knobs if k.field == "keep_channels"]
        kept = [c[i] / c[-1] for c, i in zip(widths, point, strict=False)]  # type: ignore[operator]
        assert (kept == sorted(kept, reverse=True)) is guided


@given(st.integers(0, 999), st.floats(0.2, 0.9))
@settings(max_examples=30, deadline=None)
def test_fitted_plans_keep_the_target_and_the_widths_reached(seed: int, share: float) -> None:
    problem = Net(d=6).problem((macs_at_most(0.8),))
    space, rng = problem.space, np.random.default_rng(seed)
    reduction = Reduction(problem, guided=False)
    reached = reduction.within(space.sample(rng), space.dense())
    target = Target(slack=np.zeros(1), share=share)
    for fill in (False, True):
        point = reduction.fitted(space.sample(rng), reached, target, fill=fill)
        assert space.contains(space.decode(point))
        assert reduction.is_within(point, reached)
        assert not wider(space.decode(point), reduction.structure(reached))
        assert reduction.macs_share(point) <= share or point[:6] == (0,) * 6


def run(problem: Problem, net: Net, trials: int, **options: object) -> tuple[Loop, list[Trial]]:
    loop = Loop(net, Autocompress(problem, Options(**options)), seed=1)  # type: ignore[arg-type]
    loop.run(trials)
    return loop, [t for t in loop.trials if t.preparation is not None]


NET = Net(d=6, noise=0.01)


def test_rounds_go_from_network_to_network_towards_the_bound() -> None:
    problem = NET.problem((macs_at_most(0.3),), budget=60)
    loop, prepared = run(problem, NET, 60)
    assert [t.preparation.kind for t in prepared if t.preparation] == ["admm"] * 4
    artifacts = [t.artifacts[PREPARED_ROLE] for t in prepared]
    assert [t.base for t in prepared] == [None, *artifacts[:-1]]
    shares = [problem.costs.cost(t.plan).macs / problem.costs.cost(Plan()).macs for t in prepared]
    # Every round takes the same share of what is left: 0.3 ** (r / 4).
    np.testing.assert_allclose(shares, [0.74, 0.548, 0.405, 0.3], atol=0.03)
    assert shares[-1] <= 0.3
    plans = {None: Plan()} | {t.artifacts[PREPARED_ROLE]: t.plan for t in prepared}
    assert all(not wider(t.plan, plans[t.base]) for t in loop.evaluations)
    assert all(isinstance(t.outcome, Measured) for t in loop.evaluations)
    # The network that was reached is scored as it is.
    assert any(t.base == artifacts[-1] and t.plan == prepared[-1].plan for t in loop.evaluations)


def test_it_prepares_only_what_a_network_can_carry() -> None:
    net = Net(d=4, quantize=True, selectors=("l1", "l2"))
    problem = net.problem((latency_at_most(0.3),), budget=48)
    loop, prepared = run(problem, net, 48)
    assert prepared
    assert all(t.plan.quantize() is None for t in prepared)
    assert any(t.plan.quantize() for t in loop.evaluations)


def test_measured_bounds_are_met_in_the_end() -> None:
    problem = NET.problem((latency_at_most(0.35),), budget=60)
    loop, _ = run(problem, NET, 60)
    late = [t.outcome for t in loop.evaluations[-10:]]
    assert any(isinstance(o, Measured) and problem.feasible(o.measurement) for o in late)


def test_a_failed_preparation_keeps_the_network() -> None:
    problem = NET.problem((macs_at_most(0.3),), budget=60)
    loop = Loop(NET, Autocompress(problem, Options()), seed=1)
    failed = 0
    while len(loop.evaluations) < 60:
        for request in loop.agent.ask(2):
            loop.fail = 1.0 if isinstance(request, Prepare) and not failed else 0.0
            failed += loop.fail > 0
            loop.agent.tell([loop.evaluate(t) for t in loop.propose([request])])
    bases = [t.base for t in loop.trials if t.preparation is not None]
    assert bases[:2] == [None, None]
    assert bases[2] is not None


def test_no_more_requests_are_out_than_there_are_chains() -> None:
    problem = NET.problem((macs_at_most(0.3),), budget=60)
    agent = Autocompress(problem, Options(chains=3))
    loop = Loop(NET, agent)
    probes = agent.ask(50)
    assert len(probes) == 4
    assert all(isinstance(request, Evaluate) for request in probes)
    loop.agent.tell([loop.evaluate(t) for t in loop.propose(probes)])
    assert len(agent.ask(50)) == 3
    assert agent.ask(50) == []


def test_rounds_without_preparations_stay_on_the_jobs_model() -> None:
    problem = NET.problem((macs_at_most(0.3),), budget=48)
    loop, prepared = run(problem, NET, 48, prepare=False)
    assert not prepared
    assert {t.base for t in loop.evaluations} == {None}


def test_small_budgets_have_fewer_rounds() -> None:
    problem = NET.problem((macs_at_most(0.3),), budget=26)
    _, prepared = run(problem, NET, 26)
    assert len(prepared) == 2


def test_it_beats_random_at_a_tight_bound() -> None:
    assert mean_best("autocompress", range(3)) > mean_best("random", range(5)) + 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"chains": 0},
        {"probes": 0},
        {"accepted": 1.0},
        {"cooling": 0.0},
        {"reduction": 1.0},
        {"final_share": 1.0},
        {"admm_rounds": 0},
        {"admm_steps": 0},
        {"retrain_steps": -1},
    ],
)
def test_refuses_an_option_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
