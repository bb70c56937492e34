"""Comparing two models' times beside each other: design and statistics, no runtime.

Two loads of one file differ, by some per cent on a machine with other work, for as long as they
live: where in memory each was put stays what it is. No number of rounds within one pair of loads
removes that. So the unit is the **block** (`workers.meters.block`): both models loaded afresh in a
drawn order, and timed in two regimes. A block yields one log-ratio per regime.

The ratio is the Hodges-Lehmann estimate over the blocks' log-ratios and its 95 % interval inverts
the Wilcoxon signed-rank test over blocks (`workers.meters.signed_rank`), exact for any number of
blocks; it is then widened by `SESSION`, for what no block of one session shows. When candidate and
baseline are the same file, which of a block's two loads was called the candidate is a coin of
ours, tossed anew for each block: the log-ratios are as likely of the other sign, each by itself,
whatever the noise, its drift, its correlation over time or the placement. So the chance of an
interval without 1 is at most 5 %, by the randomisation argument (Fisher, 1935) and no property of
the machine. When the files differ, the interval is that of the centre of what the ratio is over
loads, which is what the next load will draw from.

Only blocks that the machine ran at its own pace count (`workers.meters.calm`). Blocks are added
until there are enough of these and the interval is narrow enough. That is looked at after every
block, but only by the paces, the sizes of the log-ratios and the clock (`sign_free_width`), in
which the coins have no part: stopping early costs no level.

Below `FEWEST` blocks, where loading is slow for the time there is, no such interval exists. Then
the sign test over all rounds stands in, widened by `PLACEMENT` at both ends, and a warning says
so.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search.measurement import Interval
from workers.meters.block import MIN_ROUNDS, BlockPlan, BlockTimes, Clock
from workers.meters.calm import TOLERANCE, calmest, paces, undisturbed
from workers.meters.quantiles import Times, flat, quantile
from workers.meters.signed_rank import FEWEST, centre, sign_free_width

RunBlock = Callable[[BlockPlan], BlockTimes]

MIN_BLOCKS = 8
"""That count, where there is time for them."""

DRIFT_LIMIT = 0.05
"""Change of the baseline's median over a session from which a reading carries a warning."""

SESSION = 0.01
"""By how much the interval is widened at both ends for what whole sessions differ in: an INT8
network timed in four processes within minutes read 0.393 to 0.403, each to 0.3 to 1 %."""

PLACEMENT = 0.03
"""By how much two loads of one file may differ beside other work; repeated A/A comparisons of one
pair of loads each were off by 2 to 5 %."""

LOAD_SHARE = 0.5
"""Of the time, most that loading may take where blocks are too few in any case."""

LONGER = 10
"""Times the usual rounds, in blocks that are too few."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """When enough blocks are timed.

    Attributes:
        width: Wanted (high - low) / value of the interleaved ratio's interval.
        min_blocks: Timed whatever the width, if there is time.
        max_blocks: Timed at most.
        rounds: Per block in the interleaved regime.
        burst: Counted calls of each model per block in the hot regime.
        max_seconds: Timed at most, loading and warm-up included.
        min_seconds: Timed at least: disturbances last for seconds, and a short comparison may lie
            within one.
    """

    width: float = 0.05
    min_blocks: int = MIN_BLOCKS
    max_blocks: int = 400
    rounds: int = 20
    burst: int = 10
    max_seconds: float = 10.0
    min_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.max_seconds > 0):
            raise ValueError(f"width {self.width} and max_seconds {self.max_seconds} must be > 0")
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds} is outside 0..{self.max_seconds}")
        if not FEWEST <= self.min_blocks <= self.max_blocks:
            raise ValueError(f"min_blocks {self.min_blocks} is outside {FEWEST}..{self.max_blocks}")
        if self.rounds < MIN_ROUNDS or self.burst < 0:
            raise ValueError(f"rounds {self.rounds} must be >= {MIN_ROUNDS}, burst >= 0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegimeTimes:
    """One regime's raw times and what they say.

    Attributes:
        name: How caches were left between calls.
        candidate_ms: Blocks x rounds, short blocks filled up with NaN.
        baseline_ms: Of the same blocks and rounds.
        log_ratios: One per block.
        calm: Which blocks count: the machine ran them at its own pace.
        ratio: Candidate's time over the baseline's, 95 %.
    """

    name: Literal["interleaved", "hot"]
    candidate_ms: Times
    baseline_ms: Times
    log_ratios: NDArray[np.float64]
    calm: NDArray[np.bool_]
    ratio: Interval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """What the stopwatch saw.

    Attributes:
        interleaved: One inference of each in turns.
        hot: Bursts of each; None where fewer than `FEWEST` blocks had time for them.
        load_s: Seconds that loading both took, one per block.
        warnings: Why the machine cannot be believed, in words; empty when it can.
    """

    interleaved: RegimeTimes
    hot: RegimeTimes | None
    load_s: NDArray[np.float64]
    warnings: tuple[str, ...]

    @property
    def ratio(self) -> Interval:
        """The interleaved regime's."""
        return self.interleaved.ratio


def compare(
    run: RunBlock,
    rng: np.random.Generator,
    rule: StoppingRule = StoppingRule(),
    *,
    clock: Clock = time.monotonic,
) -> Comparison:
    """Time two models beside each other, block by block, until their ratio is known.

    Args:
        run: Times a block.
        rng: Draws the blocks' seeds.
        rule: When to stop.
        clock: Seconds, the one that blocks go by.

    Returns:
        The raw times with their warnings; at least one block.
    """
    end = clock() + rule.max_seconds
    blocks: list[BlockTimes] = []
    while len(blocks) < rule.max_blocks:
        now = clock()
        aim = _aim(blocks, end - now, rule)
        if blocks and (now >= end or (len(blocks) >= aim and _enough(blocks, end - now, rule))):
            break
        share = max(end - now, 0.0) / max(1, aim - len(blocks))
        plan = BlockPlan(
            seed=int(rng.integers(1 << 62)),
            until=now + share,
            rounds=rule.rounds if aim >= FEWEST else LONGER * rule.rounds,
            burst=rule.burst,
        )
        blocks.append(run(plan))
    interleaved = _interleaved(blocks, rule)
    return Comparison(
        interleaved=interleaved,
        hot=_hot(blocks, rule),
        load_s=np.array([block.load_s for block in blocks]),
        warnings=_warnings(interleaved, rule),
    )


def _cheapest_s(blocks: Sequence[BlockTimes]) -> float:
    """Return what a block must cost: loading, and the fewest calls."""
    round_s = min(block.round_s for block in blocks)
    return min(block.load_s for block in blocks) + (MIN_ROUNDS + 1) * round_s


def _aim(blocks: Sequence[BlockTimes], left_s: float, rule: StoppingRule) -> int:
    """Return how many blocks to have: the rule's, or as many as there is time for."""
    if not blocks or len(blocks) >= rule.min_blocks:
        return rule.min_blocks
    possible = len(blocks) + int(max(left_s, 0.0) // _cheapest_s(blocks))
    if possible >= FEWEST:
        return min(rule.min_blocks, possible)
    load_s = min(block.load_s for block in blocks)
    affordable = int(LOAD_SHARE * rule.max_seconds // load_s) if load_s > 0 else possible
    return max(1, min(possible, affordable))


def _enough(blocks: Sequence[BlockTimes], left_s: float, rule: StoppingRule) -> bool:
    """Whether the interval is narrow, or no further block fits; blind to signs."""
    if _cheapest_s(blocks) > left_s:
        return True
    if rule.max_seconds - left_s < rule.min_seconds:
        return False
    if len(blocks) < FEWEST:
        return relative_width(_interleaved(blocks, rule).ratio) <= rule.width
    chosen = undisturbed(np.array([block.pace for block in blocks]))
    if np.count_nonzero(chosen) < min(rule.min_blocks, len(blocks)):
        return False
    log_ratios = np.array([block.log_ratio for block in blocks])[chosen]
    return 2 * math.sinh(sign_free_width(log_ratios) / 2) <= rule.width


def regime_of(
    name: Literal["interleaved", "hot"],
    candidate_ms: Times,
    baseline_ms: Times,
    fewest: int = MIN_BLOCKS,
) -> RegimeTimes:
    """Return raw times with what they say.

    Args:
        name: `interleaved` pairs the two by rounds, `hot` only by blocks.
        candidate_ms: Blocks x rounds, NaN where a block was shorter.
        baseline_ms: Of the same blocks and rounds.
        fewest: Blocks that count at least, the calmest, where there are as many.
    """
    calm = calmest(paces(candidate_ms, baseline_ms), max(fewest, FEWEST))
    if name == "interleaved":
        log_ratios = np.nanmedian(np.log(candidate_ms / baseline_ms), axis=1)
    else:
        medians = np.nanmedian(np.stack([candidate_ms, baseline_ms]), axis=2)
        log_ratios = np.log(medians[0]) - np.log(medians[1])
    if len(log_ratios) >= FEWEST:
        ratio = widened(exponential(centre(log_ratios[calm])), SESSION)
    else:
        ratio = widened(median_ratio(flat(candidate_ms), flat(baseline_ms)), PLACEMENT)
    return RegimeTimes(
        name=name,
        candidate_ms=candidate_ms,
        baseline_ms=baseline_ms,
        log_ratios=log_ratios,
        calm=calm,
        ratio=ratio,
    )


def _interleaved(blocks: Sequence[BlockTimes], rule: StoppingRule) -> RegimeTimes:
    candidate_ms = _stacked([block.candidate_ms for block in blocks])
    baseline_ms = _stacked([block.baseline_ms for block in blocks])
    return regime_of("interleaved", candidate_ms, baseline_ms, rule.min_blocks)


def _hot(blocks: Sequence[BlockTimes], rule: StoppingRule) -> RegimeTimes | None:
    had = [block for block in blocks if len(block.hot_candidate_ms)]
    if len(had) < FEWEST:
        return None
    candidate_ms = _stacked([block.hot_candidate_ms for block in had])
    baseline_ms = _stacked([block.hot_baseline_ms for block in had])
    return regime_of("hot", candidate_ms, baseline_ms, rule.min_blocks)


def median_ratio(candidate_ms: Times, baseline_ms: Times) -> Interval:
    """Return the median over rounds of candidate / baseline with its sign-test interval, 95 %.

    Of the one pair of loads that was timed, not of loads to come.
    """
    return quantile(candidate_ms / baseline_ms, 0.5)


def _stacked(rows: Sequence[Times]) -> Times:
    longest = max(len(row) for row in rows)
    stacked = np.full((len(rows), longest), np.nan)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return stacked


def _warnings(seen: RegimeTimes, rule: StoppingRule) -> tuple[str, ...]:
    warnings = []
    # What sessions differ in is no noise of this one.
    blocks, width = len(seen.log_ratios), relative_width(seen.ratio) - 2 * SESSION
    if blocks < FEWEST:
        warnings.append(
            f"few loads: there was time for {blocks} only, {FEWEST} are needed to see how much "
            f"loads differ; the interval allows {PLACEMENT:.0%} for it instead"
        )
    if width > rule.width:
        warnings.append(
            f"noisy machine: after {blocks} blocks of {seen.candidate_ms.shape[1]} rounds the "
            f"interval of the ratio is {width:.1%} wide; {rule.width:.1%} was wanted"
        )
    calm = np.count_nonzero(undisturbed(paces(seen.candidate_ms, seen.baseline_ms)))
    if blocks >= FEWEST and calm < rule.min_blocks:
        warnings.append(
            f"disturbed machine: {calm} of {blocks} blocks ran within {TOLERANCE:.0%} of its best "
            f"pace; {rule.min_blocks} were wanted"
        )
    change = drift(flat(seen.baseline_ms[seen.calm]))
    if abs(change) > DRIFT_LIMIT:
        warnings.append(
            f"noisy machine: the baseline's median changed by {change:+.1%} while timing; "
            f"{DRIFT_LIMIT:.0%} is the limit"
        )
    return tuple(warnings)


def relative_width(interval: Interval) -> float:
    """Return (high - low) / value."""
    return (interval.high - interval.low) / interval.value


def drift(baseline_ms: Times) -> float:
    """Return by what share the median of the last third differs from that of the first."""
    third = max(1, len(baseline_ms) // 3)
    return float(np.median(baseline_ms[-third:]) / np.median(baseline_ms[:third]) - 1)


def exponential(interval: Interval) -> Interval:
    """Return the interval of a ratio from that of its logarithm."""
    low, value, high = np.exp([interval.low, interval.value, interval.high])
    return Interval(value=float(value), low=float(low), high=float(high))


def widened(interval: Interval, share: float) -> Interval:
    """Return the interval with its ends moved apart by `share` each."""
    return Interval(
        value=interval.value, low=interval.low * (1 - share), high=interval.high * (1 + share)
    )


def inverse(interval: Interval) -> Interval:
    """Return 1 / interval, for rates from times."""
    return Interval(value=1 / interval.value, low=1 / interval.high, high=1 / interval.low)
