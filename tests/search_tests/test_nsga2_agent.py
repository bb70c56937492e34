from __future__ import annotations

from types import MappingProxyType

import pytest

from search.agents.nsga2 import Nsga2, Options
from search.errors import ProblemInvalid
from search.front import ParetoFront
from tests.contracts.agent import AgentContract
from tests.synthetic import LATENCY, TOP1, Loop, Net


class TestNsga2(AgentContract):
    name = "nsga2"
    options = MappingProxyType({"population_size": 6})


def test_children_are_made_of_their_parents() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([], objectives=(TOP1, LATENCY))
    options = Options(population_size=8, mutation_probability=0.0)
    loop = Loop(net, Nsga2(problem, options), seed=1)
    loop.run(8)
    parents = [problem.space.encode(t.plan) for t in loop.trials]
    (child,) = loop.propose(loop.agent.ask(1))
    point = problem.space.encode(child.plan)
    assert all(any(parent[i] == value for parent in parents) for i, value in enumerate(point))


def test_later_generations_breed_from_the_elite() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([], objectives=(TOP1, LATENCY))
    options = Options(population_size=8, mutation_probability=0.0, crossover_probability=1.0)
    loop = Loop(net, Nsga2(problem, options), seed=1)
    loop.run(24)
    elite = ParetoFront.of(problem, loop.trials).members
    assert any(t.number >= 8 for t in elite)


@pytest.mark.parametrize(
    "options",
    [{"population_size": 2}, {"crossover_probability": 1.5}, {"mutation_probability": -0.1}],
)
def test_refuses_an_option_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
