from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from search.agents.cbo import Cbo, Options
from search.errors import ProblemInvalid
from search.problem import Problem
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import LATENCY, TOP1, Net


class TestCbo(AgentContract):
    name = "cbo"
    options = MappingProxyType({"startup_trials": 9, "candidates": 32, "fit_iterations": 4})


QUICK = {"startup_trials": 9, "candidates": 32, "fit_iterations": 4}


@pytest.mark.slow
class TestCboWithTrustRegion(AgentContract):
    name = "cbo"
    options = MappingProxyType({**QUICK, "trust_region": "on"})


@pytest.mark.slow
class TestCboInThreeNumbers(AgentContract):
    name = "cbo"
    options = MappingProxyType({**QUICK, "parametrisation": "three"})


class TestCboThatAdvances(AgentContract):
    name = "cbo"
    waits = True
    options = MappingProxyType({**QUICK, "advance": True, "steps": 2})


@pytest.mark.slow
class TestCboWithTwoObjectives(AgentContract):
    name = "cbo"
    options = MappingProxyType({**QUICK, "front": "nehvi"})

    def problem(self, **changes: Any) -> Problem:
        return super().problem(**{"objectives": (TOP1, LATENCY), **changes})


def test_learns() -> None:
    assert (
        mean_best("cbo", range(2), {"candidates": 100, "fit_iterations": 12})
        > mean_best("random", range(5)) + 0.05
    )


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
        {"trust_region": "perhaps"},
        {"front": "weights"},
        {"parametrisation": "two"},
        {"batch": 0},
        {"advance_steps": 0},
    ],
)
def test_refuses_an_option_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
