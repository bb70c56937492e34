from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from search.agents.cbo import Cbo, Options
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import Net, latency_at_most, macs_at_most, top1_at_least


class TestCbo(AgentContract):
    name = "cbo"
    options = MappingProxyType({"startup_trials": 9, "candidates": 32, "fit_iterations": 4})


def test_learns() -> None:
    assert (
        mean_best("cbo", range(2), {"candidates": 100, "fit_iterations": 12})
        > mean_best("random", range(5)) + 0.05
    )


def test_bounds_cool_from_the_dense_value_to_the_target() -> None:
    net = Net(d=4)
    problem = net.problem([latency_at_most(0.5), macs_at_most(0.25), top1_at_least(-0.02)])
    agent = Cbo(problem, Options(startup_trials=10, steps=5, cooling_share=0.4))
    # 50 trials after the design, 20 of them in 4 loose steps.
    assert [agent._step(asked) for asked in (0, 9, 10, 14, 15, 25, 29, 30, 59)] == [
        1, 1, 1, 1, 2, 4, 4, 5, 5,
    ]  # fmt: skip
    # A latency of at most half is missed by (1 - 0.5) / 0.5 = 1, MACs by 3, the floor not at all.
    heat = np.exp(-0.5) - np.exp(-2.5)
    np.testing.assert_allclose(agent._slack(10), [heat, 3 * heat, 0.0])
    np.testing.assert_array_equal(agent._slack(40), [0.0, 0.0, 0.0])


def test_the_design_takes_a_third_of_the_budget_at_most() -> None:
    assert Cbo(Net(d=27).problem(budget=30), Options())._startup_trials() == 10
    assert Cbo(Net(d=4).problem(budget=90), Options())._startup_trials() == 10
    assert Cbo(Net(d=4).problem(budget=None), Options())._startup_trials() == 10


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "quadratic"},
        {"steps": 0},
        {"rate": 0.0},
        {"cooling_share": 1.0},
        {"startup_trials": 1},
        {"candidates": 3},
        {"fit_iterations": 0},
    ],
)
def test_refuses_an_option_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
