"""Quantiles of times and of their ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.measurement import Interval
from workers.meters.quantiles import (
    Times,
    flat,
    quantile,
    quantile_ratios,
    quantiles_of_blocks,
)


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_order_statistics_of_the_median_are_the_sign_tests() -> None:
    # n = 10: ranks 2 and 9 hold 97.9 %; 3 and 8 only 89.1 %.
    interval = quantile(np.arange(1.0, 11.0), 0.5)
    assert (interval.low, interval.value, interval.high) == (2.0, 5.5, 9.0)
    # n = 100: 40 and 61 hold 96.5 %; 41 and 60 only 94.3 %.
    interval = quantile(np.arange(100.0, 0.0, -1.0), 0.5)
    assert (interval.low, interval.value, interval.high) == (40.0, 50.5, 61.0)


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_quantile_intervals_cover(q: float) -> None:
    rng = np.random.default_rng(3)
    truth = -math.log(1 - q)
    covered = sum(covers(quantile(rng.exponential(size=120), q), truth) for _ in range(2000))
    assert covered / 2000 >= 0.94


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (5, 7), (8, 20), (40, 100)])
def test_quantiles_of_any_number_of_times_are_finite_and_ordered(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape)
    times = rng.exponential(size=shape)
    if shape[1] > 2:
        times[-1, -2:] = np.nan
    shares, seen = (0.05, 0.5, 0.95, 0.99), flat(times)
    for q, interval in zip(shares, quantiles_of_blocks(times, shares, rng), strict=True):
        assert seen.min() <= interval.low <= interval.value <= interval.high <= seen.max()
        assert interval.value == np.quantile(seen, q)
    for ratio in quantile_ratios(times, times, shares, rng):
        assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.0, 1.0, 1.0))


def test_blocks_that_differ_widen_the_interval_of_their_quantile() -> None:
    rng = np.random.default_rng(5)
    alike = rng.lognormal(sigma=0.02, size=(12, 100))
    apart = alike * np.exp(0.1 * rng.standard_normal((12, 1)))
    widths = []
    for times in (alike, apart):
        (interval,) = quantiles_of_blocks(times, (0.5,), rng)
        widths.append(interval.high - interval.low)
    assert widths[1] > 4 * widths[0]


@pytest.mark.parametrize("blocks", [1, 4, 10])
def test_the_ratio_of_the_p95_covers_and_cancels_shared_noise(blocks: int) -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        candidate: Times = rng.lognormal(sigma=0.2, size=(blocks, 200 // blocks))
        baseline: Times = rng.lognormal(sigma=0.2, size=(blocks, 200 // blocks))
        (ratio,) = quantile_ratios(0.8 * candidate, baseline, (0.95,), rng)
        covered += covers(ratio, 0.8)
    assert covered / 200 >= 0.88
    shared = rng.lognormal(sigma=0.5, size=(blocks, 30))
    (interval,) = quantile_ratios(0.8 * shared, shared, (0.95,), rng)
    assert (interval.low, interval.high) == pytest.approx((0.8, 0.8))
