from __future__ import annotations

import itertools
from types import MappingProxyType

import numpy as np
import pytest

from search.agents.knapsack import Knapsack, Options, pack
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import Loop, Net, macs_at_most


class TestKnapsack(AgentContract):
    name = "knapsack"
    options = MappingProxyType({"cells": 60, "rounds": 2})


@pytest.mark.slow
def test_learns() -> None:
    assert mean_best("knapsack", range(2)) > mean_best("random", range(4)) + 0.15


@pytest.mark.parametrize("seed", range(6))
def test_packing_is_exact_on_the_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    damages = [rng.integers(0, 20, size=4).astype(float) for _ in range(5)]
    prices = [rng.integers(-3, 9, size=4).astype(float) for _ in range(5)]
    least = sum(price.min() for price in prices)
    room = 12

    def total(table: list[np.ndarray], pick: tuple[int, ...]) -> float:
        return float(sum(row[i] for row, i in zip(table, pick, strict=True)))

    best = min(
        total(damages, pick)
        for pick in itertools.product(range(4), repeat=5)
        if total(prices, pick) <= least + room
    )
    picked = pack(damages, prices, least + room, cells=room)
    assert picked is not None
    assert total(prices, tuple(picked)) <= least + room
    assert total(damages, tuple(picked)) == best


def test_what_does_not_fit_is_not_packed() -> None:
    one = [np.array([1.0, 0.0])]
    assert pack(one, [np.array([2.0, 3.0])], 1.0, cells=16) is None
    assert pack(one, [np.array([2.0, 3.0])], 3.0, cells=16) == [1]


def test_bounds_are_relaxed_at_first_and_hold_afterwards() -> None:
    net = Net(d=9)
    problem = net.problem([macs_at_most(0.25)], budget=40)
    agent = Knapsack(problem, Options(relaxed_share=0.25))
    # The dense model's load is 4, whose power 3/4 is where the relaxation starts.
    assert agent._relax(0) == pytest.approx(4**0.75)
    assert agent._relax(5) == pytest.approx(4**0.375)
    assert agent._relax(10) == 1.0
    trials = Loop(net, agent).run(16)
    excess = [problem.arithmetic_violation(t.plan) for t in trials]
    assert excess[0] > 0.3
    assert max(excess[10:]) == 0.0


@pytest.mark.parametrize(
    "options", [{"cells": 3}, {"rounds": 0}, {"explore": 1.5}, {"relaxed_share": 1.0}]
)
def test_refuses_an_option_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
