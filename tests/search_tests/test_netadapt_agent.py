from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from search.agents.netadapt import Netadapt, Options
from search.arithmetic import as_points
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import Loop, Net, macs_at_most


class TestNetadapt(AgentContract):
    name = "netadapt"
    waits = True
    options = MappingProxyType({"candidates": 3})


def test_learns() -> None:
    assert mean_best("netadapt", range(2)) > mean_best("random", range(4)) + 0.15


def test_rounds_come_down_to_the_bound_by_equal_factors() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([macs_at_most(0.25)], budget=40)
    agent = Netadapt(problem, Options(candidates=4, descent_share=0.4))
    loop = Loop(net, agent)
    dense = problem.costs.cost(problem.space.decode(problem.space.dense())).macs
    # Four rounds from a load of 4 to 1: each takes the same factor of what is left.
    for limit in (4**0.75, 4**0.5, 4**0.25, 1.0):
        done = [loop.evaluate(t) for t in loop.propose(agent.ask(9))]
        assert len(done) == 4
        loads = np.array([problem.costs.cost(t.plan).macs / dense / 0.25 for t in done])
        assert (loads <= limit + 1e-9).all()
        assert (loads > 0.9 * limit).all()
        agent.tell(done)


def test_a_round_starts_from_the_most_accurate_of_the_last() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([macs_at_most(0.25)], budget=40)
    agent = Netadapt(problem, Options(candidates=4, descent_share=0.4))
    loop = Loop(net, agent)
    done = [loop.evaluate(t) for t in loop.propose(agent.ask(9))]
    assert agent.ask(1) == []
    agent.tell(done)
    agent.ask(1)
    best = max(done, key=lambda t: net.top1(t.plan))
    assert agent._round.centre == problem.space.encode(best.plan)


def test_topping_up_leaves_no_room_for_another_choice() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([macs_at_most(0.4)], budget=40)
    agent = Netadapt(problem, Options())
    damages = agent._additive.damages()
    point = agent._topped_up(problem.space.uniform(0.25), 0, 1.0, damages)
    wider = [
        [v + (i == j) for j, v in enumerate(point)]
        for i in range(1, 9)
        if point[i] + 1 < len(problem.space.knobs[i].choices)
    ]
    assert agent._load(as_points([point], 9))[0] <= 1.0
    assert (agent._load(as_points(wider, 9)) > 1.0).all()


@pytest.mark.parametrize("options", [{"candidates": 1}, {"descent_share": 1.0}])
def test_refuses_an_option_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
