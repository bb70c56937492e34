from __future__ import annotations

import numpy as np
import pytest

from search.agents.random import Options
from search.catalogue import create
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract
from tests.synthetic import Loop, Net, macs_at_most


class TestRandom(AgentContract):
    name = "random"


def test_every_draw_keeps_the_arithmetic_bounds() -> None:
    net = Net(d=27)
    problem = net.problem([macs_at_most(0.3)])
    trials = Loop(net, create("random", problem, {})).run(60)
    assert all(problem.arithmetic_violation(t.plan) == 0 for t in trials)


def test_filled_draws_use_the_budget_up() -> None:
    net = Net(d=27)
    problem = net.problem([macs_at_most(0.3)])
    dense = net.costs.cost(problem.space.decode(problem.space.dense())).macs

    def shares(fill: float) -> list[float]:
        trials = Loop(net, create("random", problem, {"fill": fill})).run(40)
        return [net.costs.cost(t.plan).macs / dense for t in trials]

    assert np.quantile(shares(1.0), 0.1) > 0.27
    assert np.quantile(shares(0.0), 0.1) < 0.2


def test_sizes_differ_without_bounds() -> None:
    net = Net(d=27)
    problem = net.problem([])
    trials = Loop(net, create("random", problem, {})).run(60)
    macs = [net.costs.cost(t.plan).macs for t in trials]
    assert max(macs) > 3 * min(macs)


def test_refuses_an_option_out_of_range() -> None:
    with pytest.raises(ProblemInvalid, match=r"fill is 1\.5"):
        Options(fill=1.5)
