"""The stopwatch's design and statistics, on made-up machines with made-up clocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from search.measurement import Interval
from tests.workers_tests.machines import NOISES, Machine, quiet
from workers.meters.quantiles import Times
from workers.meters.signed_rank import FEWEST
from workers.meters.stopwatch import (
    MIN_BLOCKS,
    PLACEMENT,
    SESSION,
    Comparison,
    StoppingRule,
    compare,
    drift,
    exponential,
    inverse,
    median_ratio,
    regime_of,
    relative_width,
    widened,
)

QUICK = StoppingRule(max_seconds=1e9, max_blocks=10, rounds=5, burst=3, width=0.03)
REPEATS = 120


def slack(repeats: int) -> float:
    """Three standard errors of a share of 5 %: it is looked at a dozen times."""
    return 3 * math.sqrt(0.05 * 0.95 / repeats)


def watch(
    machine: Machine, ratio: float = 1.0, *, seed: int = 0, rule: StoppingRule = QUICK
) -> Comparison:
    rng = np.random.default_rng(seed)
    return compare(machine.blocks(ratio), rng, rule, clock=machine.clock)


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def told_apart(
    noise: Callable[[np.random.Generator], Machine], repeats: int
) -> NDArray[np.float64]:
    """The share of A/A comparisons whose interval excludes 1, interleaved and hot."""
    count = np.zeros(2)
    for seed in range(repeats):
        seen = watch(noise(np.random.default_rng([seed, 7])), seed=seed)
        assert seen.hot is not None
        count += [not covers(ratio, 1.0) for ratio in (seen.ratio, seen.hot.ratio)]
    return count / repeats


@pytest.mark.parametrize("noise", NOISES)
def test_a_model_is_told_from_itself_in_five_percent_at_most(
    noise: Callable[[np.random.Generator], Machine],
) -> None:
    assert (told_apart(noise, REPEATS) <= 0.05 + slack(REPEATS)).all()


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_a_model_is_told_from_itself_in_five_percent_of_many(
    noise: Callable[[np.random.Generator], Machine],
) -> None:
    assert (told_apart(noise, 1500) <= 0.05 + slack(1500)).all()


def test_rounds_within_one_pair_of_loads_would_have_told_it_apart() -> None:
    """The reason for blocks: the same times, taken for rounds of one pair."""
    count = 0
    for seed in range(60):
        machine = NOISES[1](np.random.default_rng([seed, 6]))
        block = machine.blocks(1.0)
        rng = np.random.default_rng(seed)
        rule = StoppingRule(max_seconds=1e9, min_blocks=6, max_blocks=6, rounds=120, burst=0)
        seen = compare(block, rng, rule, clock=machine.clock).interleaved
        pair = median_ratio(seen.candidate_ms[0], seen.baseline_ms[0])
        count += not covers(pair, 1.0)
    assert count > 9


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("ratio", [0.5, 0.93])
def test_the_interval_covers_a_known_ratio(
    noise: Callable[[np.random.Generator], Machine], ratio: float
) -> None:
    covered = sum(
        covers(watch(noise(np.random.default_rng([seed, 8])), ratio, seed=seed).ratio, ratio)
        for seed in range(REPEATS)
    )
    assert covered / REPEATS >= 0.95 - slack(REPEATS)


def test_a_difference_of_five_percent_is_found_on_a_quiet_machine() -> None:
    rule = StoppingRule(max_seconds=3.0, width=0.05)
    found = sum(
        watch(quiet(np.random.default_rng([seed, 9])), 0.95, seed=seed, rule=rule).ratio.high < 1
        for seed in range(60)
    )
    assert found >= 54


def test_blocks_load_both_afresh_and_time_both_in_drawn_orders() -> None:
    machine = Machine()
    seen = watch(machine, 0.5, rule=StoppingRule(max_seconds=1e9))
    assert len(seen.load_s) == 8
    loads = [name for name in machine.order if name.startswith("load")]
    pairs = list(zip(loads[::2], loads[1::2], strict=True))
    assert all(set(pair) == {"load candidate", "load baseline"} for pair in pairs)
    assert len(set(pairs)) == 2
    assert seen.interleaved.candidate_ms.shape == (8, 20)
    assert (seen.interleaved.candidate_ms == 0.5).all()
    assert (seen.interleaved.baseline_ms == 1.0).all()
    assert seen.hot is not None
    assert seen.hot.candidate_ms.shape == (8, 10)
    for ratio in (seen.ratio, seen.hot.ratio):
        ends = (0.5 * (1 - SESSION), 0.5, 0.5 * (1 + SESSION))
        assert (ratio.low, ratio.value, ratio.high) == pytest.approx(ends)
    assert seen.warnings == ()


def test_it_stops_when_the_interval_is_narrow_enough() -> None:
    rule = StoppingRule(width=0.03, max_seconds=1e9)
    calm = watch(Machine(), rule=rule)
    rough = watch(quiet(np.random.default_rng(0)), 0.6, rule=rule)
    assert len(calm.load_s) == rule.min_blocks < len(rough.load_s) < rule.max_blocks
    assert relative_width(rough.ratio) - 2 * SESSION < 0.04


def test_it_stops_at_its_time_and_says_what_it_missed() -> None:
    rule = StoppingRule(width=0.001, max_seconds=2.0)
    machine = quiet(np.random.default_rng(0))
    seen = watch(machine, rule=rule)
    assert 1.8 <= machine.clock() < 2.1
    assert any("0.1% was wanted" in warning for warning in seen.warnings)


def test_slow_models_have_fewer_rounds_in_as_many_blocks() -> None:
    seen = watch(Machine(lambda _: 20.0), rule=StoppingRule(max_seconds=3.0))
    assert len(seen.load_s) >= FEWEST
    assert seen.interleaved.candidate_ms.shape[1] < 20
    assert not any("few loads" in warning for warning in seen.warnings)


def test_slow_loads_have_few_long_blocks_and_a_wide_interval_with_a_warning() -> None:
    machine = Machine(load_ms=300.0)
    seen = watch(machine, 0.9, rule=StoppingRule(max_seconds=3.0))
    assert 2 <= len(seen.load_s) < FEWEST
    assert seen.interleaved.candidate_ms.shape[1] > 20
    assert (seen.ratio.low, seen.ratio.high) == pytest.approx(
        (0.9 * (1 - PLACEMENT), 0.9 * (1 + PLACEMENT))
    )
    assert seen.hot is None
    assert any("few loads" in warning for warning in seen.warnings)
    assert machine.clock() < 3.5


def test_a_slow_first_load_is_not_taken_for_all() -> None:
    """What a runtime does once it does in the first block."""

    class Lazy(Machine):
        def model(self, name, ms):  # type: ignore[no-untyped-def]
            inner = super().model(name, ms)

            def load():  # type: ignore[no-untyped-def]
                if not self.order:
                    self.now_ms += 800.0
                return inner()

            return load

    seen = watch(Lazy(), rule=StoppingRule(max_seconds=3.0))
    assert len(seen.load_s) == 8


def test_a_model_that_outlasts_the_limit_is_still_timed() -> None:
    seen = watch(Machine(lambda _: 1e6), rule=StoppingRule(max_seconds=0.001))
    assert seen.interleaved.candidate_ms.shape == (1, 3)
    assert seen.hot is None
    assert np.isfinite(seen.ratio.value)


def test_drift_is_said() -> None:
    seen = watch(Machine(lambda now_ms: 1 + now_ms / 1e3))
    assert covers(seen.ratio, 1.0)
    assert any("the baseline's median changed by +" in warning for warning in seen.warnings)
    assert drift(np.array([1.0, 1, 1, 5, 5, 5, 1.1, 1.1, 1.1])) == pytest.approx(0.1)
    assert drift(np.array([2.0])) == 0.0


def test_equal_seeds_make_equal_schedules() -> None:
    orders = []
    for seed in (1, 1, 2):
        machine = Machine()
        watch(machine, 0.5, seed=seed)
        orders.append(machine.order)
    assert orders[0] == orders[1] != orders[2]


def test_too_few_rounds_give_the_whole_range() -> None:
    interval = median_ratio(np.array([1.0, 2.0, 4.0]), np.ones(3))
    assert (interval.low, interval.value, interval.high) == (1.0, 2.0, 4.0)


def test_intervals_are_turned_and_widened() -> None:
    rate = inverse(Interval(value=2.0, low=1.0, high=4.0))
    assert (rate.low, rate.value, rate.high) == (0.25, 0.5, 1.0)
    ratio = exponential(Interval(value=0.0, low=-math.log(2), high=math.log(4)))
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.5, 1.0, 4.0))
    wide = widened(Interval(value=1.0, low=0.9, high=1.2), 0.1)
    assert (wide.low, wide.value, wide.high) == pytest.approx((0.81, 1.0, 1.32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0.0},
        {"max_seconds": -1.0},
        {"min_blocks": 5},
        {"max_blocks": 7},
        {"rounds": 2},
        {"burst": -1},
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be >|is outside"):
        StoppingRule(**wrong)  # type: ignore[arg-type]


def disturbed(rng: np.random.Generator, blocks: int, share: float) -> tuple[Times, Times]:
    """Return times of a candidate at 0.4 of the baseline, which a busy neighbour makes 0.5."""
    busy = rng.random(blocks) < share
    noise = np.exp(0.02 * rng.standard_normal((2, blocks, 20)))
    baseline = np.where(busy, 1.4, 1.0)[:, None] * noise[0]
    return np.where(busy, 0.7, 0.4)[:, None] * noise[1], baseline


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_blocks_beside_a_busy_neighbour_do_not_count(share: float) -> None:
    candidate, baseline = disturbed(np.random.default_rng(1), 40, share)
    seen = regime_of("interleaved", candidate, baseline)
    assert seen.ratio.value == pytest.approx(0.4, rel=0.01)
    assert seen.ratio.low < 0.4 < seen.ratio.high
    assert np.count_nonzero(seen.calm) == np.count_nonzero(baseline[:, 0] < 1.2)


def test_the_calmest_blocks_stand_in_where_too_few_are_undisturbed() -> None:
    slower = np.linspace(1.0, 3.0, 12)[:, None] * np.ones((12, 5))
    seen = regime_of("interleaved", slower, slower)
    assert np.flatnonzero(seen.calm).tolist() == list(range(MIN_BLOCKS))


def test_which_blocks_count_does_not_depend_on_who_is_called_what() -> None:
    first, second = disturbed(np.random.default_rng(2), 30, 0.5)
    one, other = regime_of("hot", first, second), regime_of("hot", second, first)
    assert (one.calm == other.calm).all()
    assert one.ratio.value == pytest.approx(1 / other.ratio.value)
