from __future__ import annotations

from types import MappingProxyType

import pytest

from compression.plan import Plan
from search.agents.gp import Gp, Options
from search.errors import ProblemInvalid
from search.optuna_study import distributions
from tests.contracts.agent import AgentContract
from tests.synthetic import Loop, Net, latency_at_most, macs_at_most


@pytest.mark.slow
class TestGp(AgentContract):
    name = "gp"
    # The stock sampler takes a second a request on a busy core: the laws see a few of them.
    options = MappingProxyType({"startup_trials": 13})


def test_refuses_an_option_out_of_range() -> None:
    with pytest.raises(ProblemInvalid, match="startup_trials is 1"):
        Options(startup_trials=1)


def test_ordered_knobs_and_switches_are_real_numbers_to_it() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    space = Net(selectors=("l1", "l2", "fpgm")).space
    found = distributions(space, relaxed=True)
    for knob in space.knobs:
        top = len(knob.choices) - 1
        if knob.ordered or top == 1:
            assert found[knob.name] == FloatDistribution(0.0, top)
        else:
            assert isinstance(found[knob.name], CategoricalDistribution)
    assert {type(one) for one in found.values()} == {FloatDistribution, CategoricalDistribution}


def test_rounded_suggestions_are_new_plans_within_the_bounds() -> None:
    net = Net(d=4, multiple=8)
    problem = net.problem([macs_at_most(0.6), latency_at_most(0.7)], budget=14)
    trials = Loop(net, Gp(problem, Options(startup_trials=8))).run(14)
    assert len({trial.plan.digest for trial in trials}) == 14
    costs, dense = problem.costs, problem.costs.cost(Plan()).macs
    assert all(costs.cost(trial.plan).macs <= 0.6 * dense for trial in trials)
