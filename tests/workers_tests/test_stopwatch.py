"""The stopwatch's statistics, on made-up times and a made-up clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from search.measurement import Interval
from workers.meters.stopwatch import (
    Comparison,
    StoppingRule,
    Timed,
    Times,
    compare,
    drift,
    inverse,
    median_ratio,
    quantile,
    quantile_ratio,
    relative_width,
    warm_up,
)

QUICK = StoppingRule(max_seconds=1e9, max_rounds=400, placement=0.0)


class Machine:
    """A made-up machine whose speed changes while it works.

    Args:
        noise: Factor of the next call, given the time in ms at which it starts.
    """

    def __init__(self, noise: Callable[[float], float] = lambda now_ms: 1.0) -> None:
        self.now_ms = 0.0
        self._noise = noise
        self.order: list[str] = []

    def model(self, name: str, ms: float) -> Timed:
        def once() -> float:
            took = ms * self._noise(self.now_ms)
            self.now_ms += took
            self.order.append(name)
            return took

        return once

    def clock(self) -> float:
        return self.now_ms / 1e3


def watch(
    machine: Machine, ratio: float = 1.0, *, seed: int = 0, rule: StoppingRule = QUICK
) -> Comparison:
    return compare(
        machine.model("candidate", ratio),
        machine.model("baseline", 1.0),
        np.random.default_rng(seed),
        rule,
        clock=machine.clock,
    )


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


# Noises of a machine, each with its own seed.


def quiet(rng: np.random.Generator) -> Machine:
    return Machine(lambda _: float(np.exp(0.05 * rng.standard_normal())))


def jittery(rng: np.random.Generator) -> Machine:
    return Machine(lambda _: float(np.exp(0.25 * rng.standard_normal())))


def heavy_tailed(rng: np.random.Generator) -> Machine:
    return Machine(lambda _: float(np.exp(0.1 * abs(rng.standard_t(2)))))


def drifting(rng: np.random.Generator) -> Machine:
    """Half as fast after a second, wandering like a thermally limited core."""
    return Machine(lambda now: float((1 + now / 1e3) * np.exp(0.05 * rng.standard_normal())))


def beside_a_hog(rng: np.random.Generator) -> Machine:
    """Another process takes the core for some milliseconds now and then."""
    state = {"until": 0.0, "hogged": False}

    def noise(now_ms: float) -> float:
        while now_ms >= state["until"]:
            state["hogged"] = not state["hogged"]
            state["until"] += float(rng.exponential(6.0))
        return float((2.2 if state["hogged"] else 1.0) * np.exp(0.04 * rng.standard_normal()))

    return Machine(noise)


NOISES = [quiet, jittery, heavy_tailed, drifting, beside_a_hog]
REPEATS = 300


@pytest.mark.parametrize("noise", NOISES)
def test_a_model_is_told_from_itself_in_five_percent_at_most(
    noise: Callable[[np.random.Generator], Machine],
) -> None:
    told_apart = sum(
        not covers(watch(noise(np.random.default_rng([seed, 7])), seed=seed).ratio, 1.0)
        for seed in range(REPEATS)
    )
    # 5 % and what chance adds to it: two standard errors.
    assert told_apart / REPEATS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / REPEATS)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("ratio", [0.5, 0.93])
def test_the_interval_covers_a_known_ratio(
    noise: Callable[[np.random.Generator], Machine], ratio: float
) -> None:
    covered = sum(
        covers(watch(noise(np.random.default_rng([seed, 8])), ratio, seed=seed).ratio, ratio)
        for seed in range(REPEATS)
    )
    assert covered / REPEATS >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / REPEATS)


def test_a_difference_of_five_percent_is_found_on_a_quiet_machine() -> None:
    found = sum(
        watch(quiet(np.random.default_rng([seed, 9])), 0.95, seed=seed).ratio.high < 1
        for seed in range(100)
    )
    assert found >= 90


def test_both_are_timed_once_a_round_in_a_drawn_order() -> None:
    machine = Machine()
    seen = watch(machine, 0.5)
    assert seen.rounds == QUICK.min_rounds
    pairs = list(zip(machine.order[::2], machine.order[1::2], strict=True))
    timed = pairs[seen.warmup_calls :]
    assert all(set(pair) == {"candidate", "baseline"} for pair in timed)
    first = sum(pair[0] == "candidate" for pair in timed)
    assert 30 <= first <= 70
    assert (seen.candidate_ms == 0.5).all()
    assert (seen.baseline_ms == 1.0).all()
    assert seen.ratio == Interval(value=0.5, low=0.5, high=0.5)
    assert seen.warnings == ()


def test_it_stops_when_the_interval_is_narrow_enough() -> None:
    rule = StoppingRule(width=0.05, max_rounds=5000, max_seconds=1e9, placement=0.0)
    calm = watch(quiet(np.random.default_rng(0)), rule=rule)
    rough = watch(jittery(np.random.default_rng(0)), rule=rule)
    assert calm.rounds == rule.min_rounds
    assert rule.min_rounds < rough.rounds < rule.max_rounds
    for seen in (calm, rough):
        assert relative_width(seen.ratio) <= 0.05
        assert not any("wide" in warning for warning in seen.warnings)


def test_it_stops_at_its_time_and_says_what_it_missed() -> None:
    rule = StoppingRule(width=0.001, max_seconds=0.5)
    machine = quiet(np.random.default_rng(0))
    seen = watch(machine, rule=rule)
    assert 0.5 <= machine.clock() < 0.51
    assert any("0.1% was wanted" in warning for warning in seen.warnings)


def test_a_model_that_outlasts_the_limit_is_still_timed() -> None:
    seen = watch(Machine(lambda _: 1e6), rule=StoppingRule(max_seconds=0.001))
    assert seen.rounds == 3
    assert np.isfinite(seen.ratio.value)


def test_drift_is_said() -> None:
    seen = watch(Machine(lambda now_ms: 1 + now_ms / 1e3))
    assert covers(seen.ratio, 1.0)
    assert any("the baseline's median changed by +" in warning for warning in seen.warnings)
    assert drift(np.array([1.0, 1, 1, 5, 5, 5, 1.1, 1.1, 1.1])) == pytest.approx(0.1)
    assert drift(np.array([2.0])) == 0.0


def test_warming_up_goes_on_until_nothing_gets_faster() -> None:
    machine = Machine(lambda now_ms: 1 + 4 * math.exp(-now_ms / 50))
    calls = warm_up(
        machine.model("c", 1.0), machine.model("b", 1.0), clock=machine.clock, until=1e9
    )
    assert machine.model("b", 1.0)() < 1.1
    assert 40 <= calls <= 200
    still = Machine()
    assert warm_up(still.model("c", 1.0), still.model("b", 1.0), clock=still.clock, until=1e9) == 16
    assert warm_up(still.model("c", 1.0), still.model("b", 1.0), clock=still.clock, until=0.0) == 1


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


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 20, 59, 5000])
def test_quantiles_of_any_number_of_times_are_finite_and_ordered(n: int) -> None:
    times = np.random.default_rng(n).exponential(size=n)
    for q in (0.05, 0.5, 0.95):
        interval = quantile(times, q)
        assert times.min() <= interval.low <= interval.value <= interval.high <= times.max()
    ratio = quantile_ratio(times, times[::-1], 0.95, np.random.default_rng(0))
    assert math.isfinite(ratio.high)


def test_too_few_rounds_give_the_whole_range() -> None:
    interval = median_ratio(np.array([1.0, 2.0, 4.0]), np.ones(3))
    assert (interval.low, interval.value, interval.high) == (1.0, 2.0, 4.0)


def test_the_ratio_of_the_p95_covers_and_cancels_shared_noise() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        candidate: Times = rng.lognormal(sigma=0.2, size=200)
        baseline: Times = rng.lognormal(sigma=0.2, size=200)
        covered += covers(quantile_ratio(0.8 * candidate, baseline, 0.95, rng), 0.8)
    assert covered / 200 >= 0.88
    shared = rng.lognormal(sigma=0.5, size=300)
    interval = quantile_ratio(0.8 * shared, shared, 0.95, rng)
    assert (interval.low, interval.high) == pytest.approx((0.8, 0.8))


def test_ratios_are_widened_by_what_rounds_cannot_remove() -> None:
    rule = StoppingRule(max_seconds=1e9)
    seen = watch(Machine(), 0.5, rule=rule)
    assert (seen.ratio.low, seen.ratio.value, seen.ratio.high) == pytest.approx(
        (0.5 * 0.995, 0.5, 0.5 * 1.005)
    )
    hopeless = StoppingRule(width=0.009, max_seconds=1e9, max_rounds=200)
    assert watch(Machine(), rule=hopeless).rounds == 200


def test_a_rate_is_the_inverse_of_a_time() -> None:
    rate = inverse(Interval(value=2.0, low=1.0, high=4.0))
    assert (rate.low, rate.value, rate.high) == (0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    "wrong", [{"width": 0.0}, {"max_seconds": -1.0}, {"min_rounds": 2}, {"max_rounds": 50}]
)
def test_a_rule_that_cannot_be_kept_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be > 0|is outside"):
        StoppingRule(**wrong)  # type: ignore[arg-type]
