"""Quantiles of times taken in blocks, with intervals; no runtime.

Times come as an array of blocks x rounds, short blocks filled up with NaN. A quantile's interval
must allow for two things: that few rounds show it (order statistics at binomial ranks, no
assumption on the distribution) and that blocks differ from each other (a bootstrap that draws
whole blocks). It is the hull of both. Ratios of quantiles are drawn with both models' blocks
together, so that what they share is drawn with them; below `FEWEST` blocks the rounds are cut
into runs of about sqrt(n) consecutive ones instead (Künsch, "The jackknife and the bootstrap for
general stationary observations", 1989).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.measurement import Interval
from workers.meters.signed_rank import CONFIDENCE, FEWEST

Times = NDArray[np.float64]
"""Milliseconds of one inference each."""

BOOTSTRAP_DRAWS = 400
TAIL = (1 - CONFIDENCE) / 2


def flat(times: Times) -> Times:
    """Return the times of all blocks in order, without what short blocks were filled with."""
    kept: Times = times[~np.isnan(times)]
    return kept


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
    value = float(np.quantile(ordered, q))
    return Interval(
        value=value,
        low=min(value, float(ordered[max(low, 1) - 1])),
        high=max(value, float(ordered[min(high, n) - 1])),
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
    low, high = np.searchsorted(below, [TAIL, 1 - TAIL])
    return int(low), int(high) + 1


def quantiles_of_blocks(
    times: Times, shares: Sequence[float], rng: np.random.Generator
) -> tuple[Interval, ...]:
    """Return quantiles of all times, each with the hull of its two intervals.

    Args:
        times: Blocks x rounds.
        shares: Which quantiles, in (0, 1).
        rng: Draws the blocks.
    """
    seen, drawn = flat(times), _sorted(_drawn(_runs(times), rng))
    found = []
    for q in shares:
        pooled = quantile(seen, q)
        low, high = np.quantile(drawn.quantile(q), [TAIL, 1 - TAIL])
        low, high = min(pooled.low, float(low)), max(pooled.high, float(high))
        found.append(Interval(value=pooled.value, low=low, high=high))
    return tuple(found)


def quantile_ratios(
    candidate_ms: Times, baseline_ms: Times, shares: Sequence[float], rng: np.random.Generator
) -> tuple[Interval, ...]:
    """Return ratios of both models' quantiles, 95 % by the bootstrap over blocks.

    Args:
        candidate_ms: Blocks x rounds.
        baseline_ms: Of the same blocks and rounds.
        shares: Which quantiles, in (0, 1).
        rng: Draws the blocks.
    """
    drawn = _drawn(_runs(np.stack([candidate_ms, baseline_ms], axis=-1)), rng)
    candidate, baseline = _sorted(drawn[..., 0]), _sorted(drawn[..., 1])
    values = [_sorted(flat(side)[None]) for side in (candidate_ms, baseline_ms)]
    found = []
    for q in shares:
        value = float(values[0].quantile(q)[0] / values[1].quantile(q)[0])
        ends = np.quantile(candidate.quantile(q) / baseline.quantile(q), [TAIL, 1 - TAIL])
        low, high = min(value, float(ends[0])), max(value, float(ends[1]))
        found.append(Interval(value=value, low=low, high=high))
    return tuple(found)


def _runs(times: Times) -> Times:
    """Return what the bootstrap draws as one: blocks, or runs of rounds where blocks are few."""
    if len(times) >= FEWEST:
        return times
    filled = np.isnan(times.reshape(*times.shape[:2], -1)).any(axis=-1)
    pooled = times[~filled]
    length = max(1, round(float(np.sqrt(len(pooled)))))
    count = -(-len(pooled) // length)
    runs = np.full((count * length, *pooled.shape[1:]), np.nan)
    runs[: len(pooled)] = pooled
    return runs.reshape(count, length, *pooled.shape[1:])


def _drawn(runs: Times, rng: np.random.Generator) -> Times:
    """Return draws x times: as many runs as there are, drawn with replacement, strung together."""
    index = rng.integers(len(runs), size=(BOOTSTRAP_DRAWS, len(runs)))
    return runs[index].reshape(BOOTSTRAP_DRAWS, -1, *runs.shape[2:])


@dataclasses.dataclass(frozen=True, slots=True)
class _Sorted:
    """Rows in ascending order with how many values each has before its NaN."""

    rows: Times
    counts: NDArray[np.int64]

    def quantile(self, q: float) -> Times:
        """Return the quantile of each row, by the order statistic at or above it."""
        ranks = np.clip(np.ceil(q * self.counts).astype(np.int64) - 1, 0, None)
        picked: Times = self.rows[np.arange(len(self.rows)), ranks]
        return picked


def _sorted(rows: Times) -> _Sorted:
    # Sorting puts NaN last.
    return _Sorted(np.sort(rows, axis=1), (~np.isnan(rows)).sum(axis=1))
