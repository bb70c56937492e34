from __future__ import annotations

import numpy as np
import pytest

from compression.space import Knob
from search.catalogue import create
from search.history import History
from search.surrogate.additive import Additive, allowed, curves, damage_of, log_odds
from tests.synthetic import Loop, Net, latency_at_most, macs_at_most


def test_log_odds_are_held_within_reason() -> None:
    assert log_odds(0.5) == 0.0
    assert log_odds(0.75) == pytest.approx(np.log(3))
    assert log_odds(0.0) == pytest.approx(-log_odds(1.0))
    assert log_odds(0.0) == pytest.approx(np.log(0.002 / 0.998))


def test_curves_begin_at_the_untouched_choice_and_are_convex() -> None:
    basis = curves(Knob(site="a", field="keep_channels", choices=(2, 4, 6, 8), ordered=True))
    np.testing.assert_allclose(basis[:, 0], [0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(basis[:, 1], [0.75**2 / 0.5, 0.25 / 0.75, 0.0625, 0.0])
    other = curves(Knob(site="m", field="precision", choices=("none", "int8"), ordered=False))
    np.testing.assert_array_equal(other, [[0.0], [1.0]])


def test_damages_rank_plans_and_loads_are_exact_where_arithmetic_is() -> None:
    net = Net(d=9)
    problem = net.problem([macs_at_most(0.5), latency_at_most(0.5)])
    loop = Loop(net, create("random", problem, {}))
    told, fresh = loop.run(60)[:45], loop.run(60)[45:]
    history = History(problem)
    history.tell(told)
    model = Additive(problem)
    model.learn(history)
    points = np.array([problem.space.encode(t.plan) for t in fresh])
    seen = [damage_of(problem, net.measurement(t.plan)) or 0.0 for t in fresh]
    assert np.corrcoef(model.damages().of(points), seen)[0, 1] > 0.8
    loads = model.loads(points)
    violations = np.array([problem.violations(net.measurement(t.plan)) for t in fresh])
    np.testing.assert_allclose(loads[:, 0], 1 + violations[:, 0], rtol=1e-9)
    np.testing.assert_allclose(loads[:, 1], 1 + violations[:, 1], rtol=0.25)
    relaxed = model.loads(points, relax=2.0)
    np.testing.assert_allclose(relaxed, loads / 2, rtol=1e-9)
    assert allowed(relaxed).sum() >= allowed(loads).sum()


def test_draws_differ_and_repeat_with_their_generator() -> None:
    model = Additive(Net(d=4).problem([]))
    first, again, other = (model.damages(np.random.default_rng(s)).tables[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first >= 0).all()
