"""Comparing two timings beside each other: schedule and statistics, no runtime.

Regime: **interleaved**. Candidate and baseline are timed in rounds, one inference of each per
round, in an order drawn anew for each round. So slow changes of the machine hit both alike, and
caches are as cold as alternation with one other model leaves them; a model that has the machine
for itself (the hot regime) is somewhat faster.

The ratio of the medians is estimated by the median over rounds of candidate / baseline, and its
95 % interval by inverting the sign test on those per-round ratios (order statistics at binomial
ranks). When both are the same model, the drawn order alone makes a round's ratio as often above 1
as below it, whatever the noise, its drift or its correlation over time, so that the chance of an
interval without 1 is at most 5 %: an exact randomisation argument (Fisher, 1935), which holds for
no interval that assumes independent rounds. p50 and p95 of each side have order-statistic
intervals as well. The ratio of the p95 has no such pairing: its interval is a bootstrap over
blocks of consecutive rounds (Künsch, 1989).

What no number of rounds removes is where in memory a model happened to be loaded: two loads of one
file differ by some thousandths for as long as they live. The intervals of both ratios are widened
by that much (`PLACEMENT`).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search.measurement import Interval

Times = NDArray[np.float64]
"""Milliseconds of one inference each, in the order in which they were taken."""

Timed = Callable[[], float]
"""Runs one inference and returns its milliseconds."""

REGIME: Literal["interleaved"] = "interleaved"
CONFIDENCE = 0.95
DRIFT_LIMIT = 0.05
"""Change of the baseline's median over a session from which a reading carries a warning."""
PLACEMENT = 0.005
"""By how much two loads of one file may differ; ten pairs of a 0.8 ms network, 1,500 rounds each,
had ratios with a standard deviation of 0.0036."""
BOOTSTRAP_DRAWS = 400
MIN_ROUNDS_EVER = 3
"""Rounds that are timed even when the first one outlasts the time limit."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """When enough rounds are timed.

    Attributes:
        width: Wanted (high - low) / value of the ratio's interval.
        min_rounds: Timed whatever the width; 100 are what a p95 asks for.
        max_rounds: Timed at most.
        max_seconds: Timed at most, warm-up included.
        placement: Share by which the ratio's interval is widened at both ends.
    """

    width: float = 0.05
    min_rounds: int = 100
    max_rounds: int = 5000
    max_seconds: float = 10.0
    placement: float = PLACEMENT

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.max_seconds > 0):
            raise ValueError(f"width {self.width} and max_seconds {self.max_seconds} must be > 0")
        if not MIN_ROUNDS_EVER <= self.min_rounds <= self.max_rounds:
            raise ValueError(
                f"min_rounds {self.min_rounds} is outside {MIN_ROUNDS_EVER}..{self.max_rounds}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """What the stopwatch saw.

    Attributes:
        candidate_ms: One per round.
        baseline_ms: One per round, of the same round.
        ratio: Candidate's median over the baseline's, 95 %, widened by the rule's `placement`.
        warmup_calls: Inferences of each before the first round.
        warnings: Why the machine cannot be believed, in words; empty when it can.
        regime: How caches were left between calls.
    """

    candidate_ms: Times
    baseline_ms: Times
    ratio: Interval
    warmup_calls: int
    warnings: tuple[str, ...]
    regime: Literal["interleaved"] = REGIME

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.candidate_ms)


def compare(
    candidate: Timed,
    baseline: Timed,
    rng: np.random.Generator,
    rule: StoppingRule = StoppingRule(),
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Time two models beside each other until the interval of their ratio is narrow.

    Args:
        candidate: One inference of it.
        baseline: One inference of it.
        rng: Draws the order within each round.
        rule: When to stop.
        clock: Seconds, for the time limit.

    Returns:
        The raw times with their warnings; at least `MIN_ROUNDS_EVER` rounds.
    """
    start = clock()
    warmup_calls = warm_up(candidate, baseline, clock=clock, until=start + rule.max_seconds / 4)
    times: list[tuple[float, float]] = []
    next_look = rule.min_rounds
    while len(times) < rule.max_rounds:
        if len(times) >= MIN_ROUNDS_EVER and clock() - start >= rule.max_seconds:
            break
        if len(times) >= next_look:
            pairs = np.array(times)
            ratio = widened(median_ratio(pairs[:, 0], pairs[:, 1]), rule.placement)
            if relative_width(ratio) <= rule.width:
                break
            # Few looks at the data: each is a chance to stop on a lucky narrow interval.
            next_look = max(next_look + 1, next_look * 5 // 4)
        if rng.random() < 0.5:
            first = candidate()
            times.append((first, baseline()))
        else:
            first = baseline()
            times.append((candidate(), first))
    pairs = np.array(times)
    candidate_ms, baseline_ms = np.ascontiguousarray(pairs.T)
    ratio = widened(median_ratio(candidate_ms, baseline_ms), rule.placement)
    width = relative_width(ratio)
    warnings = []
    if width > rule.width:
        warnings.append(
            f"noisy machine: after {len(times)} rounds the interval of the ratio is "
            f"{width:.1%} wide; {rule.width:.1%} was wanted"
        )
    change = drift(baseline_ms)
    if abs(change) > DRIFT_LIMIT:
        warnings.append(
            f"noisy machine: the baseline's median changed by {change:+.1%} while timing; "
            f"{DRIFT_LIMIT:.0%} is the limit"
        )
    return Comparison(
        candidate_ms=candidate_ms,
        baseline_ms=baseline_ms,
        ratio=ratio,
        warmup_calls=warmup_calls,
        warnings=tuple(warnings),
    )


def warm_up(
    candidate: Timed,
    baseline: Timed,
    *,
    clock: Callable[[], float],
    until: float,
    window: int = 8,
    max_windows: int = 25,
    tolerance: float = 0.03,
) -> int:
    """Alternate both until neither gets faster any more.

    Stationary is when the median of the last `window` calls is at most `tolerance` below the
    lowest median of the windows before; a slower window is noise, not warming up.

    Returns:
        Calls made of each; at least 2 windows unless the clock passes `until` first.
    """
    lowest = np.full(2, np.inf)
    calls = 0
    for index in range(max_windows):
        taken = []
        for _ in range(window):
            taken.append((candidate(), baseline()))
            calls += 1
            if clock() >= until:
                return calls
        medians = np.median(np.array(taken), axis=0)
        if index > 0 and bool(np.all(medians >= lowest * (1 - tolerance))):
            break
        lowest = np.minimum(lowest, medians)
    return calls


def median_ratio(candidate_ms: Times, baseline_ms: Times) -> Interval:
    """Return the median over rounds of candidate / baseline with its sign-test interval, 95 %."""
    return quantile(candidate_ms / baseline_ms, 0.5)


def quantile(values: Times, q: float) -> Interval:
    """Return a quantile with its order-statistic interval, 95 %.

    The interval is [x_(l), x_(u)] with l and u the 2.5 % and 97.5 % points of Binomial(n, q), and
    so needs no assumption on the distribution. Where n is too small for such ranks the smallest
    or largest value stands in.

    Args:
        values: n >= 1 finite values.
        q: In (0, 1).
    """
    ordered = np.sort(values)
    n = len(ordered)
    low, high = _ranks(n, q)
    return Interval(
        value=float(np.quantile(ordered, q)),
        low=float(ordered[max(low, 1) - 1]),
        high=float(ordered[min(high, n) - 1]),
    )


@functools.lru_cache(maxsize=256)
def _ranks(n: int, q: float) -> tuple[int, int]:
    """Return 1-based ranks l, u with P(x_(l) <= q-quantile <= x_(u)) >= 95 %; 0 or n + 1 is open.

    With B ~ Binomial(n, q) the values below the quantile, that is P(l <= B <= u - 1).
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    log_ways = log_factorial[n] - log_factorial - log_factorial[::-1]
    below = np.cumsum(np.exp(log_ways + k * np.log(q) + (n - k) * np.log1p(-q)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.searchsorted(below, [tail, 1 - tail])
    return int(low), int(high) + 1


def quantile_ratio(
    candidate_ms: Times, baseline_ms: Times, q: float, rng: np.random.Generator
) -> Interval:
    """Return the ratio of both sides' quantiles, 95 % by the circular block bootstrap.

    Rounds are drawn in blocks of about sqrt(n) consecutive ones, both sides together, so that
    noise which both share or which lasts for several rounds is drawn with them.
    """
    n = len(candidate_ms)
    length = max(1, round(float(np.sqrt(n))))
    starts = rng.integers(n, size=(BOOTSTRAP_DRAWS, -(-n // length), 1))
    index = ((starts + np.arange(length)) % n).reshape(BOOTSTRAP_DRAWS, -1)[:, :n]
    drawn = _upper(candidate_ms[index], q) / _upper(baseline_ms[index], q)
    value = float(_upper(candidate_ms[None], q)[0] / _upper(baseline_ms[None], q)[0])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def _upper(rows: Times, q: float) -> Times:
    """Return the quantile of each row, by the order statistic at or above it."""
    rank = min(rows.shape[1] - 1, int(np.ceil(q * rows.shape[1])) - 1)
    picked: Times = np.partition(rows, rank, axis=1)[:, rank]
    return picked


def relative_width(interval: Interval) -> float:
    """Return (high - low) / value."""
    return (interval.high - interval.low) / interval.value


def drift(baseline_ms: Times) -> float:
    """Return by what share the median of the last third differs from that of the first."""
    third = max(1, len(baseline_ms) // 3)
    return float(np.median(baseline_ms[-third:]) / np.median(baseline_ms[:third]) - 1)


def widened(interval: Interval, share: float) -> Interval:
    """Return the interval with its ends moved apart by `share` each."""
    return Interval(
        value=interval.value, low=interval.low * (1 - share), high=interval.high * (1 + share)
    )


def inverse(interval: Interval) -> Interval:
    """Return 1 / interval, for rates from times."""
    return Interval(value=1 / interval.value, low=1 / interval.high, high=1 / interval.low)
