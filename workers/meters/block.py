"""One block of a comparison: both models loaded afresh, warmed up, timed in two regimes.

Which of the two takes the first place is drawn; everything else of the schedule is drawn in terms
of places and knows nothing of who has which. So where both are one file, swapping them would have
been as likely, and the block's log-ratio as likely of the other sign: whatever the noise, its
drift, and where in memory each happened to be put.

* **interleaved** (caches as cold as a call of one other model leaves them): rounds of one
  inference each, in an order drawn anew for each round;
* **hot** (a model has the machine for itself): each model many times in a row, in a drawn order,
  the first calls of each burst not counted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from workers.meters.quantiles import Times

Timed = Callable[[], float]
"""Runs one inference and returns its milliseconds."""

Load = Callable[[], Timed]
"""Loads a model and returns how to time it."""

Clock = Callable[[], float]
"""Seconds since some fixed moment."""

MIN_ROUNDS = 3
"""Rounds that are timed even when the first one outlasts the time limit."""

BURST_DISCARDED = 3
"""First calls of a burst, in which caches become the model's own."""

WARM_UP_SHARE = 0.25
INTERLEAVED_SHARE = 0.7
"""Of a block's time when they must end, for slow models; fast ones need far less."""

BALLAST_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """What a block shall be.

    Attributes:
        seed: Of everything drawn in it.
        until: Of the clock, when it shall have ended; `MIN_ROUNDS` are timed in any case.
        rounds: Of the interleaved part, at most.
        burst: Counted calls of each model in the hot part, at most.
    """

    seed: int
    until: float
    rounds: int
    burst: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BlockTimes:
    """What a block saw, milliseconds of one inference each, in order.

    Attributes:
        candidate_ms: One per round.
        baseline_ms: One per round, of the same round.
        hot_candidate_ms: Of its burst; empty where no time was left.
        hot_baseline_ms: Of its burst, as many.
        load_s: Seconds before the first call: loading both, and starting a process for it.
        warmup_calls: Inferences of each before the first round.
    """

    candidate_ms: Times
    baseline_ms: Times
    hot_candidate_ms: Times
    hot_baseline_ms: Times
    load_s: float
    warmup_calls: int

    @functools.cached_property
    def round_s(self) -> float:
        """Median seconds of one round."""
        return float(np.median(self.candidate_ms + self.baseline_ms)) / 1e3

    @functools.cached_property
    def log_ratio(self) -> float:
        """Median over rounds of log(candidate / baseline)."""
        return float(np.median(np.log(self.candidate_ms / self.baseline_ms)))

    @functools.cached_property
    def pace(self) -> float:
        """Mean of the logarithms of both medians, see `workers.meters.calm`."""
        medians = np.median([self.candidate_ms, self.baseline_ms], axis=1)
        return float(np.log(medians).mean())

    @functools.cached_property
    def hot_log_ratio(self) -> float | None:
        """Difference of the logarithms of the bursts' medians; None without bursts."""
        if not len(self.hot_candidate_ms):
            return None
        medians = np.median([self.hot_candidate_ms, self.hot_baseline_ms], axis=1)
        return float(np.log(medians[0]) - np.log(medians[1]))


def run_block(
    candidate: Load, baseline: Load, plan: BlockPlan, *, clock: Clock = time.monotonic
) -> BlockTimes:
    """Time one block."""
    start = clock()
    rng = np.random.default_rng(plan.seed)
    swapped = bool(rng.random() < 0.5)
    # Held until the block ends: it moves what is allocated next to places of their own.
    ballast = [bytearray(int(size)) for size in rng.integers(64, BALLAST_BYTES, rng.integers(1, 9))]
    places = [load() for load in ((baseline, candidate) if swapped else (candidate, baseline))]
    loaded = clock()

    def moment(share: float) -> float:
        return loaded + share * max(plan.until - loaded, 0.0)

    warmup_calls = warm_up(places, clock=clock, until=moment(WARM_UP_SHARE))
    rounds = _interleaved(places, plan.rounds, rng, clock, moment(INTERLEAVED_SHARE))
    fewest_s = (BURST_DISCARDED + 1) * float(np.median(rounds.sum(axis=0))) / 1e3
    has_time = plan.burst > 0 and clock() + fewest_s <= plan.until
    bursts = _bursts(places, plan.burst if has_time else 0, rng, clock, plan.until)
    del places, ballast
    if swapped:
        rounds, bursts = rounds[::-1], bursts[::-1]
    return BlockTimes(
        candidate_ms=rounds[0],
        baseline_ms=rounds[1],
        hot_candidate_ms=bursts[0],
        hot_baseline_ms=bursts[1],
        load_s=loaded - start,
        warmup_calls=warmup_calls,
    )


def warm_up(
    places: Sequence[Timed],
    *,
    clock: Clock,
    until: float,
    window: int = 4,
    max_windows: int = 25,
    tolerance: float = 0.03,
) -> int:
    """Alternate the models until none gets faster any more.

    Stationary is when the median of the last `window` calls is at most `tolerance` below the
    lowest median of the windows before; a slower window is noise, not warming up.

    Returns:
        Calls made of each; at least 2 windows unless the clock passes `until` first.
    """
    lowest = [math.inf] * len(places)
    calls = 0
    for index in range(max_windows):
        taken = []
        for _ in range(window):
            taken.append([once() for once in places])
            calls += 1
            if clock() >= until:
                return calls
        medians = [statistics.median(times) for times in zip(*taken, strict=True)]
        pairs = list(zip(medians, lowest, strict=True))
        if index > 0 and all(now >= before * (1 - tolerance) for now, before in pairs):
            break
        lowest = [min(pair) for pair in pairs]
    return calls


def _interleaved(
    places: Sequence[Timed], rounds: int, rng: np.random.Generator, clock: Clock, until: float
) -> Times:
    """Return 2 x rounds, a row for each place."""
    first, second = places
    times: list[tuple[float, float]] = []
    while len(times) < rounds and (len(times) < MIN_ROUNDS or clock() < until):
        if rng.random() < 0.5:
            times.append((first(), second()))
        else:
            later = second()
            times.append((first(), later))
    return np.ascontiguousarray(np.array(times).T)


def _bursts(
    places: Sequence[Timed], burst: int, rng: np.random.Generator, clock: Clock, until: float
) -> Times:
    """Return 2 x calls, a row for each place; no calls where no burst is wanted."""
    if burst < 1:
        return np.zeros((2, 0))
    start = clock()
    order = [0, 1] if rng.random() < 0.5 else [1, 0]
    times: list[list[float]] = [[], []]
    calls, halfway = BURST_DISCARDED + burst, (start + until) / 2
    for place in order:
        taken = times[place]
        while len(taken) < calls:
            taken.append(places[place]())
            # The second burst has as many calls as the first had time for.
            if place == order[0] and clock() >= halfway and len(taken) > BURST_DISCARDED:
                break
        calls = len(taken)
    return np.array([taken[BURST_DISCARDED:] for taken in times])
