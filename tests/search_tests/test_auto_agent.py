from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from search.agents.auto import CONTROLS, Auto, Options, area_under_curve
from search.catalogue import create
from search.errors import ProblemInvalid
from tests.contracts.agent import BOUNDS, NET, AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import Loop

QUICK: dict[str, Any] = {
    "agents": ("cbo", "tpe"),
    "options": {
        "cbo": {"startup_trials": 4, "candidates": 64, "fit_iterations": 20},
        "tpe": {"startup_trials": 3},
    },
}


class TestAuto(AgentContract):
    name = "auto"
    options = MappingProxyType(QUICK)


def test_every_racer_and_control_gets_its_turn() -> None:
    problem = NET.problem(BOUNDS, budget=40)
    agent = create("auto", problem, {**QUICK, "control_share": 0.2})
    assert isinstance(agent, Auto)
    loop = Loop(NET, agent)
    loop.run(30)
    askers = list(agent.snapshot().data["askers"].values())
    assert len(askers) == 30
    assert [askers.count(name) for name in CONTROLS] == [3, 3]
    assert min(askers.count(name) for name in ("cbo", "tpe")) >= 2


def test_both_controls_ask_in_a_short_search() -> None:
    agent = create("auto", NET.problem(BOUNDS, budget=12), {**QUICK, "control_share": 0.05})
    Loop(NET, agent).run(12)
    askers = list(agent.snapshot().data["askers"].values())
    assert [askers.count(name) for name in CONTROLS] == [1, 1]


def test_who_finds_good_plans_is_asked_more_often() -> None:
    problem = NET.problem(BOUNDS, budget=60)
    # A first population as large as the budget: a racer that never learns.
    agent = create(
        "auto",
        problem,
        {
            "agents": ("cbo", "nsga2"),
            "options": {"cbo": QUICK["options"]["cbo"], "nsga2": {"population_size": 60}},
            "exploration": 0.02,
        },
    )
    loop = Loop(NET, agent)
    loop.run(60)
    askers = list(agent.snapshot().data["askers"].values())
    assert askers.count("cbo") > askers.count("nsga2")


def test_the_lead_earns_nothing() -> None:
    problem = NET.problem(BOUNDS, budget=20)
    agent = create("auto", problem, {**QUICK, "control_share": 0.0, "lead_share": 0.5})
    Loop(NET, agent).run(12)
    data = agent.snapshot().data
    askers = list(data["askers"].values())
    assert askers[:10] == ["cbo"] * 10
    assert data["led"] == list(data["askers"])[:10]
    # Both begin anew: each is asked once before anyone is asked again.
    assert sorted(askers[10:]) == ["cbo", "tpe"]


def test_the_area_under_the_curve_weighs_the_recent_more() -> None:
    assert area_under_curve([]) == 0.0
    assert area_under_curve([True, True, True]) == pytest.approx(1.0)
    assert area_under_curve([False, False, True]) == pytest.approx(3 / 6)
    assert area_under_curve([True, False, False]) == pytest.approx(1 / 6)


@pytest.mark.slow
def test_a_race_is_not_worse_than_its_controls() -> None:
    race, uniform, random = (
        mean_best(name, range(3), QUICK if name == "auto" else None)
        for name in ("auto", "uniform", "random")
    )
    assert race > random
    assert race >= uniform


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"agents": ()}, "some, each once"),
        ({"agents": ("cbo", "cbo")}, "some, each once"),
        ({"agents": ("cbo", "random")}, "cannot race"),
        ({"options": {"amc": {}}}, "do not race"),
        ({"agents": ("chess",)}, "Unknown agent 'chess'"),
        ({"agents": ("cbo",), "options": {"cbo": {"steps": 0}}}, "at least 1"),
        ({"agents": ("cbo",), "lead_share": 1.5}, "lead_share is 1.5"),
        ({"agents": ("cbo",), "control_share": 0.7}, r"must be in \[0, 0.5\]"),
        ({"agents": ("cbo",), "exploration": -1.0}, "at least 0"),
        ({"agents": ("cbo",), "elite": 0.0}, "must be in"),
    ],
)
def test_odd_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemInvalid, match=message):
        Options(**wrong)


def test_a_snapshot_of_another_race_is_refused() -> None:
    problem = NET.problem(BOUNDS)
    made = create("auto", problem, {"agents": ("tpe",)}).snapshot()
    with pytest.raises(ProblemInvalid, match="is of a race of"):
        create("auto", problem, {"agents": ("cbo",)}).restore(made)
    assert np.isfinite(made.data["turn"])
