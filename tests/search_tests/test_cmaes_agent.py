from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from search.agents.cmaes import Cmaes, Options
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract
from tests.synthetic import Loop, Net, macs_at_most


class TestCmaes(AgentContract):
    name = "cmaes"
    options = MappingProxyType({"population_size": 4})


def test_the_mean_moves_to_the_best_of_a_generation() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([])
    agent = Cmaes(problem, Options(population_size=6))
    Loop(net, agent).run(18)
    told = agent._history.told
    before, after = agent._strategy(told[:12]).mean, agent._strategy(told).mean
    generation = agent._ranked(told[12:])
    best, worst = (agent._unit(generation[i].point) for i in (0, -1))
    moved = after - before
    assert moved @ (best - before) > moved @ (worst - before)


def test_generations_rank_what_keeps_the_bounds_first() -> None:
    net = Net(d=9)
    problem = net.problem([macs_at_most(0.3)])
    agent = Cmaes(problem, Options(population_size=6))
    Loop(net, agent).run(18)
    ranked = agent._ranked(agent._history.told)
    measured = [t.measurement for t in ranked if t.measurement is not None]
    excess = [problem.total_violation(m) for m in measured]
    assert excess == sorted(excess)
    assert np.isfinite(excess).all()


@pytest.mark.parametrize("options", [{"population_size": 2}, {"sigma": 0.0}])
def test_refuses_an_option_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
