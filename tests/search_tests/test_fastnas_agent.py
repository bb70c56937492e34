from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from compression.space import Point
from search.agents.fastnas import Fastnas, Options, _next_rung, monotone_curve
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract
from tests.search_tests.rivalry import mean_best
from tests.synthetic import Loop, Net, latency_at_most, macs_at_most


class TestFastnas(AgentContract):
    name = "fastnas"
    options = MappingProxyType({"levels": 2})


def test_learns() -> None:
    assert mean_best("fastnas", range(2)) > mean_best("random", range(4)) + 0.15


def test_curves_are_monotone_through_what_was_measured() -> None:
    x = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    # 0.5 looks worse than 0.75: the envelope takes the worse; beyond it a parabola.
    curve = monotone_curve(x, {2: 0.4, 3: 0.3}, usual=9.0)
    np.testing.assert_allclose(curve, [0.0, 0.1, 0.4, 0.4, 0.4 / 0.75**2])
    np.testing.assert_allclose(monotone_curve(x, {}, usual=2.0), 2 * x**2)
    np.testing.assert_allclose(monotone_curve(x, {2: -0.1}, usual=2.0), np.zeros(5))


def test_knobs_alone_come_first_and_take_their_share() -> None:
    net = Net(d=9)
    problem = net.problem([macs_at_most(0.3)], budget=30)
    trials = Loop(net, Fastnas(problem, Options(sensitivity_share=0.4))).run(14)
    alone = [len(list(t.plan)) == 1 for t in trials]
    assert alone == [True] * 12 + [False] * 2
    # The largest degradation is found by arithmetic: the next trial keeps the bound.
    assert problem.arithmetic_violation(trials[12].plan) == 0


def test_a_ladder_is_bisected() -> None:
    ladder: list[Point] = [(i,) for i in range(9)]
    assert _next_rung(ladder, {}, set()) == (0,)
    verdicts: dict[Point, bool] = {(0,): False}
    assert _next_rung(ladder, verdicts, set()) == (4,)
    assert _next_rung(ladder, verdicts, {(4,)}) is None
    verdicts[(4,)] = True
    assert _next_rung(ladder, verdicts, set()) == (2,)
    verdicts |= {(2,): False, (3,): False}
    assert _next_rung(ladder, verdicts, set()) is None


def test_measured_bounds_are_met_by_bisection() -> None:
    net = Net(d=9, quantize=False)
    problem = net.problem([latency_at_most(0.5)], budget=30)
    trials = Loop(net, Fastnas(problem, Options())).run(30)
    ladder = trials[15:21]
    held = [problem.feasible(net.measurement(t.plan)) for t in ladder]
    assert any(held)
    assert not held[0]


@pytest.mark.parametrize("options", [{"sensitivity_share": 0.0}, {"levels": 6}])
def test_refuses_an_option_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ProblemInvalid, match=next(iter(options))):
        Options(**options)  # type: ignore[arg-type]
