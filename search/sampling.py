"""Where points come from when no model says better: random draws, designs, neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compression.space import PlanSpace, Point
from search.arithmetic import Floats, Points, as_points
from search.history import History, canonical, settings
from search.repair import Repair, as_point

LEVELS = (0.05, 0.95)
"""Range of the mean share of draws. Knobs drawn each on its own make every network of many sites
half as wide; a level per draw makes sizes differ, too."""

ATTEMPTS = 64
"""Random draws that are tried before neighbours are walked for a new point."""

SCAN = 20_000
"""Points that are walked one by one when random draws find nothing new."""


def spread(space: PlanSpace, unit: Floats, levels: Floats) -> Points:
    """Return points for unit coordinates, of differing size.

    A channel knob takes the share `u ** ((1 - level) / level)` of its range, whose mean over
    uniform u is the level; level 0.5 is uniform. Other knobs are uniform in their choices.

    Args:
        space: With d knobs.
        unit: `t x d` in [0, 1).
        levels: `t` in (0, 1).
    """
    counts = np.array([len(knob.choices) for knob in space.knobs])
    is_keep = np.array([knob.field == "keep_channels" for knob in space.knobs])
    share = np.where(is_keep, unit ** ((1 - levels) / levels)[:, None], unit)
    return np.asarray(np.minimum((share * counts).astype(np.int64), counts - 1))


def draw(space: PlanSpace, rng: np.random.Generator, count: int) -> Points:
    """Draw `count x d` points with random levels."""
    unit = rng.random((count, len(space.knobs)))
    return spread(space, unit, rng.uniform(*LEVELS, size=count))


def uniform_points(space: PlanSpace, keep_ratios: Sequence[float]) -> Points:
    """Return the uniform points at each ratio, with every setting of the unordered knobs."""
    rows = []
    for keep_ratio in keep_ratios:
        for setting in settings(space):
            point = list(space.uniform(keep_ratio))
            for knob, index in setting.items():
                point[knob] = index
            rows.append(canonical(space, point))
    return as_points(rows, len(space.knobs))


def design(repair: Repair, seed: int, count: int, slack: Floats | float = 0.0) -> list[Point]:
    """Return up to `count` different points to start with; deterministic.

    Uniform points first, grown or shrunk to the arithmetic bounds, then a scrambled Sobol
    sequence repaired to them.

    Args:
        repair: Of the problem.
        seed: Of the scrambling.
        count: Points wanted; fewer when the space is small.
        slack: Violation of the arithmetic bounds that is still allowed.
    """
    from scipy.stats import qmc

    space = repair.space
    # A quarter of the design is uniform: the strongest cheap baseline, and the frame of the rest.
    ratios = (0.75, 0.5, 0.9, 0.25)
    uniform = repair.shrink(uniform_points(space, ratios), slack)
    sobol = qmc.Sobol(d=len(space.knobs) + 1, scramble=True, rng=np.random.default_rng(seed))
    unit = sobol.random_base2(int(np.ceil(np.log2(4 * count + 1))))
    low, high = LEVELS
    drawn = repair.shrink(spread(space, unit[:, :-1], low + (high - low) * unit[:, -1]), slack)
    points: dict[Point, None] = {}
    for row in uniform:
        if len(points) < max(1, count // 4):
            points[canonical(space, row)] = None
    for row in drawn:
        if len(points) < count:
            points[canonical(space, row)] = None
    return list(points)


def neighbours(space: PlanSpace, point: Sequence[int]) -> Points:
    """Return the points one step away: one choice up or down, or any other unordered choice."""
    rows = []
    for number, knob in enumerate(space.knobs):
        here = point[number]
        others: Sequence[int] = (
            [i for i in (here - 1, here + 1) if 0 <= i < len(knob.choices)]
            if knob.ordered
            else [i for i in range(len(knob.choices)) if i != here]
        )
        for index in others:
            row = list(point)
            row[number] = index
            rows.append(row)
    return as_points(rows, len(space.knobs))


def _walk(space: PlanSpace, start: Sequence[int]) -> Iterator[Point]:
    """Yield every point once, counting up from `start` and round again."""
    sizes = [len(knob.choices) for knob in space.knobs]
    row = list(start)
    for _ in range(space.size):
        yield tuple(row)
        for number, size in enumerate(sizes):
            row[number] = (row[number] + 1) % size
            if row[number]:
                break


def new_point(
    repair: Repair,
    history: History,
    rng: np.random.Generator,
    *,
    near: Sequence[Point] = (),
    slack: Floats | float = 0.0,
) -> Point | None:
    """Return a point nobody asked for, that keeps the arithmetic bounds where any does.

    Neighbours of `near` in their order, then random draws, then a walk through the space.

    Args:
        repair: Of the problem.
        history: What is known.
        rng: Of the draws and the order of neighbours.
        near: Where to look first.
        slack: Violation of the arithmetic bounds that is still allowed.

    Returns:
        None when no plan is left that keeps the bounds (or, where none does, no plan at all).
    """
    space = repair.space
    d = len(space.knobs)
    for centre in near:
        around = rng.permutation(neighbours(space, centre))
        found = _first_new(history, around[_kept(repair, around, slack)])
        if found is not None:
            return found
    drawn = repair.shrink(draw(space, rng, ATTEMPTS), slack)
    found = _first_new(history, drawn[_kept(repair, drawn, slack)])
    if found is not None:
        return found
    start = [int(rng.integers(len(knob.choices))) for knob in space.knobs]
    batch: list[Point] = []
    for point in _walk(space, start):
        if history.is_new(point):
            batch.append(point)
        if len(batch) >= SCAN:
            break
    rows = as_points(batch, d)
    if not len(rows):
        return None
    excess = repair.arithmetic.excess(rows, slack)
    best = int(np.argmin(excess))
    # Measuring what arithmetic refuses is worth something only when nothing keeps the bounds.
    if excess[best] > 0 and repair.reachable() and len(batch) < SCAN:
        return None
    return canonical(space, as_point(rows[best]))


def _kept(repair: Repair, points: Points, slack: Floats | float) -> NDArray[np.bool_]:
    return repair.keeps_bounds(points, slack)


def _first_new(history: History, points: Points) -> Point | None:
    for row in points:
        if history.is_new(row):
            return canonical(history.space, as_point(row))
    return None
