"""The Hodges-Lehmann estimate and the signed-rank interval, in closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from workers.meters.signed_rank import FEWEST, centre, lowest_rank, sign_free_width


def p_at_most(statistic: int, n: int) -> float:
    """P(W <= statistic) by counting all signs."""
    sums = [
        sum(rank for rank, sign in enumerate(signs, 1) if sign)
        for signs in itertools.product((False, True), repeat=n)
    ]
    return float(np.mean([total <= statistic for total in sums]))


@pytest.mark.parametrize("n", range(2, 13))
def test_ranks_are_those_of_all_signs_counted(n: int) -> None:
    rank = lowest_rank(n)
    assert rank == 0 or p_at_most(rank - 1, n) <= 0.025
    assert p_at_most(rank, n) > 0.025
    assert (rank == 0) == (n < FEWEST)


def test_ranks_are_those_of_the_tables() -> None:
    # Wilcoxon's critical values at 5 %, two-sided, plus one.
    tables = {6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 12: 13, 15: 25, 20: 52, 25: 89, 30: 137}
    assert {n: lowest_rank(n) - 1 for n in tables} == tables


@pytest.mark.parametrize("n", [6, 8, 11, 20, 40])
def test_the_interval_holds_what_the_test_of_scipy_does_not_reject(n: int) -> None:
    values = np.random.default_rng(n).standard_normal(n) + 0.3
    found = centre(values)
    step = 1e-9
    for edge, inside, outside in ((found.low, step, -step), (found.high, -step, step)):
        assert stats.wilcoxon(values - edge - inside, method="exact").pvalue > 0.05
        assert stats.wilcoxon(values - edge - outside, method="exact").pvalue <= 0.05


def test_the_estimate_is_the_median_of_the_averages_of_pairs() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    averages = [(values[i] + values[j]) / 2 for i in range(6) for j in range(i, 6)]
    found = centre(values)
    assert found.value == np.median(averages)
    assert (found.low, found.high) == (1.0, 32.0)
    assert centre(values + 5).value == found.value + 5
    assert centre(-values).low == -found.high


def test_ties_and_zeros_are_held() -> None:
    found = centre(np.zeros(8))
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="5 values have no 95 % signed-rank interval; 6 do"):
        centre(np.zeros(5))


@pytest.mark.parametrize("shift", [0.0, 0.5, 20.0])
def test_the_width_is_told_without_signs(shift: float) -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        values = rng.standard_normal(20) + shift
        signs = rng.choice([-1.0, 1.0], 20)
        assert sign_free_width(values) == sign_free_width(values * signs)
        interval = centre(values)
        ratios.append(sign_free_width(values) / (interval.high - interval.low))
    assert 0.8 < np.median(ratios) < 1.7
    assert shift < 20 or np.allclose(ratios, 1.0)
