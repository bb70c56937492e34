from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from search.agents.tpe import Options
from search.catalogue import create
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import Loop, Net, macs_at_most


class TestTpe(AgentContract):
    name = "tpe"
    options = MappingProxyType({"startup_trials": 6})


def test_learns() -> None:
    assert mean_best("tpe", range(4)) > mean_best("random", range(4)) + 0.05


def test_suggestions_are_repaired_before_they_are_asked_for() -> None:
    net = Net(d=9)
    problem = net.problem([macs_at_most(0.4)])
    trials = Loop(net, create("tpe", problem, {})).run(30)
    assert all(problem.arithmetic_violation(t.plan) == 0 for t in trials)


def test_avoids_what_cannot_be_evaluated_after_a_while() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([])
    loop = Loop(net, create("tpe", problem, {}))
    loop.run(40)
    wide = [np.mean(problem.space.to_unit(problem.space.encode(t.plan))) for t in loop.trials]
    assert np.mean(wide[-10:]) > np.mean(wide[:10])


@pytest.mark.parametrize("options", [{"startup_trials": 1}, {"candidates": 0}])
def test_refuses_an_option_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)
