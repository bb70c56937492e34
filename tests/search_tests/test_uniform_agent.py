from __future__ import annotations

from types import MappingProxyType

from search.agents.uniform import Options, Uniform
from search.measurement import Measured
from tests.contracts.agent import AgentContract
from tests.synthetic import Loop, Net, latency_at_most


class TestUniform(AgentContract):
    name = "uniform"
    options = MappingProxyType({"levels": 4})


def test_bisects_to_the_widest_feasible_ratio() -> None:
    net = Net(d=4, quantize=False)
    problem = net.problem([latency_at_most(0.5)])
    agent = Uniform(problem, Options(levels=4))
    trials = Loop(net, agent).run(12)
    feasible = {
        agent._problem.space.encode(t.plan)
        for t in trials
        if isinstance(t.outcome, Measured) and problem.feasible(t.outcome.measurement)
    }
    (ladder,) = agent._ladders
    widest = next(p for p in ladder if problem.feasible(net.measurement(problem.space.decode(p))))
    assert widest in feasible


def test_sweeps_widest_first_and_every_precision() -> None:
    net = Net(d=4)
    problem = net.problem([])
    trials = Loop(net, Uniform(problem, Options(levels=4))).run(8)
    floats = [t for t in trials if t.plan.quantize() is None]
    assert len(floats) == 4
    macs = [net.costs.cost(t.plan).macs for t in floats]
    assert macs == sorted(macs, reverse=True)
