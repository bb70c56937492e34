from __future__ import annotations

from types import MappingProxyType

import pytest

from search.agents.nsga3 import Nsga3, Options
from search.errors import ProblemInvalid
from search.front import ParetoFront
from tests.contracts.agent import AgentContract
from tests.synthetic import LATENCY, MACS, TOP1, Loop, Net


class TestNsga3(AgentContract):
    name = "nsga3"
    options = MappingProxyType({"population_size": 6})


def test_later_generations_breed_from_the_elite_of_three_objectives() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([], objectives=(TOP1, LATENCY, MACS))
    loop = Loop(net, Nsga3(problem, Options(population_size=8)), seed=1)
    loop.run(24)
    elite = ParetoFront.of(problem, loop.trials).members
    assert any(t.number >= 8 for t in elite)


@pytest.mark.parametrize(
    "options",
    [
        {"population_size": 2},
        {"crossover_probability": 1.5},
        {"mutation_probability": -0.1},
        {"divisions": 0},
    ],
)
def test_refuses_an_option_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
