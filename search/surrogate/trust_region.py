"""A box around the best plan, that grows with success and shrinks with failure.

Reference:
    D. Eriksson, M. Poloczek: Scalable Constrained Bayesian Optimization, AISTATS 2021 (SCBO):
    sides, counters, candidates by perturbation, constrained Thompson sampling; the box's
    proportions by length scales from D. Eriksson et al.: TuRBO, NeurIPS 2019.

Deviations:
    * The state is replayed from the told trials in order of proposal, under the bounds of today:
      cooled bounds move the best. Nothing has to be stored.
    * Knobs without order have no side: they change with the probability of all others.
    * Candidates are rounded to choices, and shrunk to bounds that arithmetic decides.
    * After a restart the surrogates keep all observations; only the centre is sought anew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.arithmetic import Floats, Points

SIDE, MOST, LEAST = 0.8, 1.6, 2.0**-7
"""Side at the beginning, largest, and below which a region is given up; the space's is 1."""

SUCCESSES = 3
"""In a row, that double the side."""

PROGRESS = 1e-3
"""Share of the best loss (or violation) by which a success is better."""

MOVED = 20
"""Knobs that a candidate moves on average, at most."""


@dataclasses.dataclass(frozen=True)
class Region:
    """Where the next candidates come from.

    Attributes:
        side: Of the box, as a share of each knob's range.
        centre: Number of the trial in the middle; None after a restart: anywhere.
    """

    side: float
    centre: int | None


def failures_allowed(knobs: int, batch: int) -> int:
    """Return how many trials without success halve the side: `ceil(max(4/q, d/q))`."""
    return math.ceil(max(4.0 / batch, knobs / batch))


def replay(
    excess: Floats, losses: Floats, *, knobs: int, batch: int, design: int, fresh: int = 1
) -> Region:
    """Return the region that told trials lead to.

    Args:
        excess: `t` total violations, in order of proposal; 0 is feasible.
        losses: `t`, smaller is better.
        knobs: d.
        batch: q, requests under way at once.
        design: Trials before the region's first; they count as neither success nor failure.
        fresh: Trials drawn anywhere after a restart.
    """
    side, best, successes, failures, born = SIDE, None, 0, 0, 0
    limit = failures_allowed(knobs, batch)
    for number, merit in enumerate(zip(excess.tolist(), losses.tolist(), strict=True)):
        counts = number >= design and number >= born + (fresh if born else 1)
        if best is None or _better(merit, (excess[best], losses[best]), 0.0):
            succeeded = best is None or _better(merit, (excess[best], losses[best]), PROGRESS)
            best = number
        else:
            succeeded = False
        if not counts:
            continue
        successes, failures = (successes + 1, 0) if succeeded else (0, failures + 1)
        if successes == SUCCESSES:
            side, successes = min(2.0 * side, MOST), 0
        elif failures == limit:
            side, failures = side / 2.0, 0
        if side < LEAST:
            side, best, successes, failures, born = SIDE, None, 0, 0, number + 1
    if born and len(excess) < born + fresh:
        best = None
    return Region(side, best)


def _better(a: Sequence[float], b: Sequence[float], margin: float) -> bool:
    """Whether `a` misses the bounds less than `b`, or both keep them and its loss is smaller."""
    if a[0] > 0 or b[0] > 0:
        return a[0] < b[0] * (1 - margin)
    return a[1] < b[1] - margin * abs(b[1])


def perturbed(
    centre: Points,
    counts: Points,
    ordered: NDArray[np.bool_],
    weights: Floats,
    *,
    side: float,
    rng: np.random.Generator,
    count: int,
) -> Points:
    """Return `count x d` variations of `d` choices within a box.

    Each knob moves with probability `min(1, 20 / d)`, at least one does.

    Args:
        centre: `d` choices.
        counts: `d` numbers of choices.
        ordered: `d` booleans, whether neighbouring choices are alike.
        weights: `d` factors of the side, geometric mean 1.
        side: Of the box, as a share of each knob's range.
        rng: Of the draws.
        count: Points wanted.
    """
    d = len(counts)
    last = np.maximum(counts - 1, 1)
    half = np.clip(side * weights, 0.0, 2.0) / 2
    middle = centre / last
    low, high = np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)
    drawn = low + (high - low) * rng.random((count, d))
    inside = np.minimum(np.rint(drawn * last).astype(np.int64), counts - 1)
    anew = rng.integers(0, counts, size=(count, d))
    moved = rng.random((count, d)) < min(1.0, MOVED / d)
    moved[np.arange(count), rng.integers(0, d, size=count)] = True
    return np.where(moved, np.where(ordered, inside, anew), centre)


def thompson(losses: Floats, violations: Floats, limits: Sequence[float]) -> int:
    """Return the candidate that one joint draw calls best.

    Args:
        losses: `t` drawn losses.
        violations: `t x k` drawn violations.
        limits: `k` violations that are still allowed.
    """
    excess = np.maximum(violations - np.array(limits), 0.0).sum(axis=1)
    if (excess <= 0).any():
        return int(np.argmin(np.where(excess <= 0, losses, np.inf)))
    return int(np.argmin(excess))
