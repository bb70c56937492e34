from __future__ import annotations

import numpy as np
import pytest

from search.surrogate.trust_region import (
    MOST,
    Region,
    failures_allowed,
    perturbed,
    replay,
    thompson,
)


def after(losses: list[float], *, excess: list[float] | None = None, design: int = 1) -> Region:
    """Five knobs, four trials at once: two failures halve."""
    values = np.array(losses, dtype=float)
    misses = np.zeros(len(values)) if excess is None else np.array(excess, dtype=float)
    return replay(misses, values, knobs=5, batch=4, design=design)


@pytest.mark.parametrize(
    ("knobs", "batch", "allowed"), [(5, 4, 2), (3, 1, 4), (27, 1, 27), (27, 4, 7), (2, 8, 1)]
)
def test_patience(knobs: int, batch: int, allowed: int) -> None:
    assert failures_allowed(knobs, batch) == allowed


def test_three_successes_in_a_row_double_the_side() -> None:
    assert after([9, 8, 7]) == Region(0.8, 2)
    assert after([9, 8, 7, 6]) == Region(1.6, 3)
    assert after([9, 8, 7, 6, 5, 4, 3]) == Region(MOST, 6)
    assert after([9, 8, 7, 8, 6, 5]) == Region(0.8, 5)


def test_failures_in_a_row_halve_it() -> None:
    assert after([5, 6]) == Region(0.8, 0)
    assert after([5, 6, 6]) == Region(0.4, 0)
    assert after([5, 6, 4, 6]) == Region(0.8, 2)
    # Better by less than a thousandth is the centre, but no success.
    assert after([5, 4.999, 4.998]) == Region(0.4, 2)


def test_trials_of_the_design_count_for_nothing() -> None:
    assert after([5, 6, 6, 6, 6], design=5) == Region(0.8, 0)
    assert after([5, 6, 6, 6, 6], design=3) == Region(0.4, 0)


def test_a_small_violation_is_better_than_a_large_one_and_worse_than_none() -> None:
    assert after([1, 2, 3, 4], excess=[3, 2, 1, 0]) == Region(1.6, 3)
    assert after([5, 1, 1], excess=[0, 1, 1]) == Region(0.4, 0)


def test_it_restarts_when_it_has_become_too_small() -> None:
    # 0.8 / 2**7 is the first below the least; two failures halve.
    spent = [1.0] + [2.0] * 14
    assert after(spent[:-1]).side < 0.02
    assert after(spent) == Region(0.8, None)
    # The first trial afterwards is the new centre, although the old one was better.
    assert after([*spent, 3.0]) == Region(0.8, len(spent))


def test_candidates_stay_in_the_box_and_all_move() -> None:
    rng = np.random.default_rng(0)
    counts, ordered = np.array([33, 33, 3]), np.array([True, True, False])
    centre = np.array([16, 32, 1])
    weights = np.array([0.5, 2.0, 1.0])
    drawn = perturbed(centre, counts, ordered, weights, side=0.25, rng=rng, count=2000)
    # Half of 0.25 times 32 choices times the weight.
    assert np.abs(drawn[:, 0] - 16).max() == 2
    assert drawn[:, 1].min() == 24
    assert drawn[:, 1].max() == 32
    assert set(drawn[:, 2]) == {0, 1, 2}


def test_at_most_twenty_knobs_move_on_average() -> None:
    counts = np.full(80, 64)
    drawn = perturbed(
        counts // 2, counts, counts > 0, np.ones(80), side=0.8,
        rng=np.random.default_rng(1), count=2000,
    )  # fmt: skip
    assert (drawn != 32).sum(axis=1).mean() == pytest.approx(20, rel=0.1)
    assert (drawn != 32).any(axis=1).mean() > 0.99


def test_a_draw_prefers_the_feasible_and_then_the_nearly_feasible() -> None:
    losses = np.array([1.0, 2.0, 3.0])
    assert thompson(losses, np.array([[0.3], [0.1], [0.0]]), [0.2]) == 1
    assert thompson(losses, np.array([[0.9], [0.5], [0.7]]), [0.2]) == 1
    assert thompson(losses, np.empty((3, 0)), []) == 0
