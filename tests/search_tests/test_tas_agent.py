"""The agent `tas`: its targets, its orders and what it measures of a found plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from compression.decisions import PruneChannels
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from search.agent import Prepare
from search.agents.tas import Options, Tas, nearest
from search.errors import ProblemInvalid
from search.measurement import Measured, Measurement, Reading
from search.objective import Constraint
from search.problem import Problem
from search.trial import Fidelity
from tests.builders import surveyed_resnet
from tests.contracts.agent import AgentContract
from tests.synthetic import (
    LATENCY,
    TOP1,
    Loop,
    Net,
    best_feasible,
    download_at_most,
    latency_at_most,
    macs_at_most,
)

NET = Net(d=9)
DENSE = NET.costs.cost(Plan()).macs


class TestTas(AgentContract):
    name = "tas"
    waits = True


def agent(problem: Problem, **options: Any) -> Tas:
    return Tas(problem, Options(**options))


def orders(loop: Loop) -> list[dict[str, Any]]:
    return [dict(t.preparation.options) for t in loop.trials if t.preparation is not None]


def test_the_target_is_the_tightest_bound_on_macs_and_flops() -> None:
    flops = Constraint(metric="flops", at_most=0.4, relative_to="baseline")
    loop = Loop(NET, agent(NET.problem([macs_at_most(0.6), flops])))
    loop.run(1)
    assert orders(loop)[0]["macs"] == int(0.4 * DENSE)


def test_a_bound_on_params_becomes_the_macs_of_the_uniform_network_that_keeps_it() -> None:
    problem = NET.problem([Constraint(metric="params", at_most=0.3, relative_to="baseline")])
    loop = Loop(NET, agent(problem))
    (found, *_) = loop.run(1)
    (order,) = orders(loop)
    assert 0.2 * DENSE < order["macs"] < 0.45 * DENSE
    assert problem.arithmetic_violation(found.plan) == 0


def test_what_was_found_is_measured_first_and_with_every_precision() -> None:
    loop = Loop(NET, agent(NET.problem([macs_at_most(0.5)])))
    first, second = loop.run(2)
    outcome = loop.trials[0].outcome
    assert isinstance(outcome, Measured)
    assert first.plan.to_json() == outcome.found["plan"]
    assert second.plan.prune_channels() == first.plan.prune_channels()
    assert first.plan.quantize() is None
    assert second.plan.quantize() is not None


def test_the_mean_choices_are_measured_after_the_most_probable_ones() -> None:
    loop = Loop(NET, agent(NET.problem([macs_at_most(0.5)]), orders=1))
    (trial,) = loop.propose(loop.agent.ask(1))
    done = loop.evaluate(trial)
    assert isinstance(done.outcome, Measured)
    space = NET.space
    mean = space.decode(space.uniform(0.25))
    found = {**done.outcome.found, "expected_plan": mean.to_json()}
    loop.agent.tell([dataclasses.replace(done, outcome=Measured(Measurement(()), found))])
    plans = [request.plan for request in loop.agent.ask(4)]
    assert plans[0].to_json() == found["plan"]
    assert [p.quantize() is None for p in plans] == [True, False, True, False]
    assert plans[2].prune_channels() == plans[3].prune_channels() == mean.prune_channels()


def test_nothing_is_asked_for_while_the_first_training_runs() -> None:
    tas = agent(NET.problem([macs_at_most(0.5)]))
    (order,) = tas.ask(3)
    assert isinstance(order, Prepare)
    assert (order.kind, order.plan, order.base) == ("tas", Plan(), None)
    assert tas.ask(3) == []


def test_a_measured_bound_moves_the_target_by_bisection() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([latency_at_most(0.5)])
    loop = Loop(net, agent(problem, orders=6))
    loop.run(30)
    targets = [order["macs"] for order in orders(loop)]
    assert targets[0] == int(0.5 * DENSE)
    verdicts = []
    for trial in loop.trials:
        if trial.fidelity is Fidelity.PREPARED:
            assert isinstance(trial.outcome, Measured)
            plan = Plan.from_json(trial.outcome.found["plan"])
            verdicts.append(problem.feasible(net.measurement(plan)))
    low = max(t for t, held in zip(targets, verdicts, strict=True) if held)
    high = min([DENSE, *(t for t, held in zip(targets, verdicts, strict=True) if not held)])
    assert len(targets) >= 3
    assert low < high < 1.35 * low
    assert len(set(targets)) == len(targets)


def test_an_exact_bound_is_aimed_at_where_a_precision_holds_the_measured_ones() -> None:
    bounds = [macs_at_most(0.5), download_at_most(0.25)]
    loop = Loop(NET, agent(NET.problem(bounds), orders=3))
    loop.run(12)
    first, second = orders(loop)
    assert first["macs"] == second["macs"] == int(0.5 * DENSE)
    assert (first["depth"], second["depth"]) == (True, False)


def test_several_objectives_ask_for_smaller_targets_after_it() -> None:
    bounds = [macs_at_most(0.5), download_at_most(0.25)]
    loop = Loop(NET, agent(NET.problem(bounds, objectives=(TOP1, LATENCY)), orders=3))
    loop.run(12)
    first, second = [order["macs"] for order in orders(loop)][:2]
    assert first == int(0.5 * DENSE)
    assert second == pytest.approx(0.75 * first, abs=1)


def test_where_it_does_not_the_measured_bounds_are_aimed_at_next() -> None:
    bounds = [macs_at_most(0.5), latency_at_most(0.2)]
    loop = Loop(NET, agent(NET.problem(bounds), orders=3))
    loop.run(12)
    targets = [order["macs"] for order in orders(loop)]
    assert targets[:2] == [int(0.5 * DENSE), int(0.2 * DENSE)]


def test_one_objective_under_an_exact_bound_varies_the_cost_not_the_target() -> None:
    loop = Loop(NET, agent(NET.problem([macs_at_most(0.5)]), orders=3))
    loop.run(12)
    first, second, third = orders(loop)
    assert first["macs"] == second["macs"] == third["macs"]
    assert (first["depth"], second["depth"], third["depth"]) == (True, False, True)
    assert "tolerance" not in first
    assert second["tolerance"] == "below"
    assert third["cost_weight"] == 1.0


def test_where_there_are_blocks_alone_every_training_searches_depths() -> None:
    _, survey = surveyed_resnet(20)
    space = resolve_space(survey.sites, Methods(allow=("drop_block",)), survey.costs)
    problem = dataclasses.replace(
        NET.problem([macs_at_most(0.8)]),
        space=space,
        costs=survey.costs,
        baseline=Measurement((Reading.exact("macs", survey.costs.cost(Plan()).macs),)),
    )
    loop = Loop(NET, agent(problem, orders=2), fail=1.0)
    loop.run(3)
    assert [order["depth"] for order in orders(loop)] == [True, True]


def test_several_objectives_ask_for_several_sizes() -> None:
    problem = NET.problem([], objectives=(TOP1, LATENCY))
    loop = Loop(NET, agent(problem, orders=3))
    loop.run(12)
    sizes = [order["macs"] / DENSE for order in orders(loop)]
    assert sizes == pytest.approx([0.6, 0.45, 0.3375], abs=1e-3)


def test_no_training_where_no_width_meets_the_bound() -> None:
    loop = Loop(NET, agent(NET.problem([macs_at_most(0.001)])))
    assert len(loop.run(8)) == 8
    assert orders(loop) == []


def test_failed_trainings_leave_uniform_plans_and_their_surroundings() -> None:
    problem = NET.problem([macs_at_most(0.5)])
    loop = Loop(NET, agent(problem, orders=2), fail=1.0)
    loop.run(6)
    assert len(orders(loop)) == 2
    assert all(problem.arithmetic_violation(t.plan) == 0 for t in loop.evaluations)


def test_a_plan_outside_the_space_is_rounded_into_it() -> None:
    problem = NET.problem([])
    plan = Plan.of({"b0.conv1": [PruneChannels(keep_channels=7, selector="taylor")]})
    point = nearest(problem.space, plan)
    kept = problem.space.decode(point).prune_channels()["b0.conv1"].keep_channels
    assert kept in (6, 8)
    away = Plan.of({"elsewhere": [PruneChannels(keep_channels=7)]})
    assert problem.space.decode(nearest(problem.space, away)) == Plan()


def test_what_a_training_says_is_not_trusted() -> None:
    problem = NET.problem([macs_at_most(0.5)])
    loop = Loop(NET, agent(problem, orders=1))
    (trial,) = loop.propose(loop.agent.ask(1))
    done = loop.evaluate(trial)
    outcome = done.outcome
    assert isinstance(outcome, Measured)
    loop.agent.tell([dataclasses.replace(done, outcome=Measured(outcome.measurement, {}))])
    (request,) = loop.agent.ask(1)
    assert problem.arithmetic_violation(request.plan) == 0


def test_surroundings_are_better_than_the_found_plan() -> None:
    problem = NET.problem([macs_at_most(0.3)], budget=36)
    loop = Loop(NET, agent(problem))
    trials = loop.run(36)
    assert -best_feasible(problem, trials) > -best_feasible(problem, trials[:2]) + 0.01


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"orders": 0}, {"width": False, "depth": False}, {"batch_size": 1}]
)
def test_refuses_an_option_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)
