"""A multiple-choice knapsack over all knobs, solved again after every trial.

Every choice of every knob has a damage, learnt from all trials, and a price, the exact or
predicted difference that it makes to the bounded quantities. One choice per knob is taken such
that the damages are least and the prices fit.

Reference:
    M. Shen, H. Yin, P. Molchanov et al.: Structural Pruning via Latency-Saliency Knapsack (HALP),
    NeurIPS 2022: the k-th group of channels has a value, and a price that is a difference of
    latencies; the choice is a knapsack, solved by dynamic programming. Exploration by W. R.
    Thompson, 1933.

Deviations:
    * Damages are fitted to trials (`search.surrogate.additive`), where the paper sums Taylor
      scores: the search never sees gradients. Until trials are told a prior decides.
    * The paper solves once a pruning step; here it is solved for every request, by turns with the
      most likely damages and with a draw of what else they may be.
    * Several bounds are merged into one price by weights, which grow for bounds that are missed;
      prices that depend on the other knobs are taken anew around each solution.
    * Time is predicted from costs and corrected by readings; there is no table of latencies.
    * The first requests relax the bounds, falling geometrically from the dense model's load: plans
      that still classify teach which sites hurt, plans at chance do not.
    * Objectives besides accuracy are held to levels that sweep their range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compression.space import Point
from search.arithmetic import Floats, Points, as_points
from search.errors import ProblemInvalid
from search.history import canonical, generator, settings
from search.point_agent import PointAgent
from search.problem import Problem
from search.repair import as_point
from search.sampling import new_point
from search.surrogate.additive import Additive, Damages, allowed

MOST_SETTINGS = 4
"""Settings of the knobs of the whole model for which one request solves the knapsack."""

DRAWS = 6
"""Draws of the damages before neighbours of the last solution are taken instead."""

NO_BUDGET = 60
"""Trials the search is laid out for when none are given."""

GOLDEN = (5**0.5 - 1) / 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the knapsack.

    Attributes:
        cells: Grid of the dynamic programme, 16 to 10000; finer prices are rounded to a cell.
        rounds: Times prices are taken anew around the last solution, at least 1.
        explore: Share of the requests that use a draw of the damages, in [0, 1].
        relaxed_share: Share of the budget that is spent under relaxed bounds, in [0, 1).
    """

    cells: int = 300
    rounds: int = 3
    explore: float = 0.5
    relaxed_share: float = 0.3

    def __post_init__(self) -> None:
        if not 16 <= self.cells <= 10_000:
            raise ProblemInvalid(f"knapsack: cells is {self.cells}; 16..10000 is allowed")
        if self.rounds < 1:
            raise ProblemInvalid(f"knapsack: rounds is {self.rounds}; at least 1")
        if not 0.0 <= self.explore <= 1.0:
            raise ProblemInvalid(f"knapsack: explore is {self.explore}; it must be in [0, 1]")
        if not 0.0 <= self.relaxed_share < 1.0:
            raise ProblemInvalid(
                f"knapsack: relaxed_share is {self.relaxed_share}; it must be in [0, 1)"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one request may load: the arguments of `Additive.loads`."""

    level: float
    caution: float
    relax: float

    @property
    def named(self) -> dict[str, float]:
        """Return them by name."""
        return {"level": self.level, "caution": self.caution, "relax": self.relax}


def pack(
    damages: Sequence[Floats], prices: Sequence[Floats], capacity: float, cells: int
) -> list[int] | None:
    """Return one choice per item with least total damage within the capacity.

    Multiple-choice knapsack by dynamic programming; exact when prices are multiples of
    `range / cells`, range being the capacity above the cheapest choices.

    Args:
        damages: One array over choices per item.
        prices: Likewise, of any sign.
        capacity: Of the sum of prices.
        cells: Of the grid.

    Returns:
        None when even the cheapest choices do not fit.
    """
    least = [price.min() for price in prices]
    room = capacity - float(sum(least))
    if room < -1e-9:
        return None
    cell = max(room, 1e-12) / cells
    best = np.zeros(cells + 1)
    taken: list[NDArray[np.int64]] = []
    steps = [
        np.rint(np.minimum((price - low) / cell, cells + 1)).astype(np.int64)
        for price, low in zip(prices, least, strict=True)
    ]
    for damage, step in zip(damages, steps, strict=True):
        after = np.full(cells + 1, np.inf)
        choice = np.zeros(cells + 1, dtype=np.int64)
        for index in np.lexsort((step, damage)):
            used = int(step[index])
            if used > cells:
                continue
            reached = best[: cells + 1 - used] + damage[index]
            better = reached < after[used:]
            after[used:][better] = reached[better]
            choice[used:][better] = index
        best = after
        taken.append(choice)
    where = int(np.argmin(best))
    out = []
    for step, choice in zip(reversed(steps), reversed(taken), strict=True):
        index = int(choice[where])
        out.append(index)
        where -= int(step[index])
    return out[::-1]


class Knapsack(PointAgent):
    """Packs the least damaging choices into the bounds, with damages learnt from every trial."""

    options_type = Options

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem)
        self._options = options
        self._additive = Additive(problem)
        dense = problem.space.dense()
        # Few departures from the untouched model first.
        self._settings = sorted(
            settings(problem.space), key=lambda s: sum(s[i] != dense[i] for i in s)
        )

    def _suggest(self) -> Point | None:
        asked, history = self._history.asked, self._history
        rng = generator(self._problem, asked)
        self._additive.learn(history)
        relax = self._relax(asked)
        explores = relax > 1 or rng.random() < self._options.explore
        near: list[Point] = []
        for attempt in range(DRAWS):
            drawn = self._additive.damages(rng if explores or attempt else None)
            caution = float(abs(rng.normal())) if explores or attempt else 0.0
            level = 0.25 + 0.75 * ((asked + attempt) * GOLDEN % 1.0)
            solution = self._solution(drawn, Limits(level, caution, relax), asked)
            if solution is None:
                break
            if history.is_new(solution):
                return solution
            near.append(solution)
        return new_point(self._repair, history, rng, near=near)

    def _relax(self, asked: int) -> float:
        """Return the factor on every limit: from near the dense model's load down to 1."""
        loose = self._options.relaxed_share * (self._problem.budget_trials or NO_BUDGET)
        if asked >= loose:
            return 1.0
        dense = as_points([self._problem.space.dense()], len(self._problem.space.knobs))
        most = float(self._additive.loads(dense).max(initial=1.0))
        return float(max(most, 1.0) ** (0.75 * (1 - asked / loose)))

    def _solution(self, damages: Damages, limits: Limits, turn: int) -> Point | None:
        slack = limits.relax - 1
        found: list[tuple[float, float, Point]] = []
        count = len(self._settings)
        for number in range(min(count, MOST_SETTINGS)):
            setting = self._settings[(number + (turn if count > MOST_SETTINGS else 0)) % count]
            for point in self._packed(setting, damages, limits):
                row = as_points([point], len(point))
                if not self._repair.keeps_bounds(row, slack)[0]:
                    continue
                loads = self._additive.loads(row, **limits.named)
                excess = float(np.maximum(loads - 1 - 1e-9, 0.0).sum())
                found.append((excess, float(damages.of(row)[0]), point))
        return min(found)[2] if found else None

    def _packed(self, setting: dict[int, int], damages: Damages, limits: Limits) -> list[Point]:
        """Return the solutions of the rounds, filled to the arithmetic bounds where they may be."""
        space, slack = self._problem.space, limits.relax - 1
        base = list(space.uniform(0.7))
        for knob, index in setting.items():
            base[knob] = index
        centre = self._repair.shrink(as_points([base], len(base)), slack)
        free = [i for i in range(len(base)) if i not in setting]
        weights: Floats | None = None
        points: list[Point] = []
        for _ in range(self._options.rounds):
            rows = self._variants(as_point(centre[0]), free)
            loads = self._additive.loads(np.vstack([centre, rows]), **limits.named)
            here, around = loads[0], loads[1:]
            if weights is None:
                weights = np.ones(len(here))
            # Weights move towards the bounds that the last solution misses or just keeps.
            weights = weights * np.minimum(here, 4.0) ** 2
            weights = weights / (weights.sum() or 1.0)
            prices, start = [], 0
            for knob in free:
                end = start + len(space.knobs[knob].choices)
                prices.append((around[start:end] - here) @ weights)
                start = end
            picked = pack(
                [damages.tables[knob] for knob in free],
                prices,
                float(weights @ (1 - here)),
                self._options.cells,
            )
            point = list(as_point(centre[0]))
            for knob, price, number in zip(free, prices, range(len(free)), strict=True):
                point[knob] = int(np.argmin(price)) if picked is None else picked[number]
            exact = self._repair.shrink(as_points([point], len(point)), slack)
            filled = self._repair.fill(exact, slack)
            fits = allowed(self._additive.loads(filled, **limits.named))[0]
            points += [canonical(space, as_point(row[0])) for row in (exact, filled)[: 1 + fits]]
            centre = exact
        return points

    def _variants(self, centre: Point, free: Sequence[int]) -> Points:
        """Return the centre with each free knob at each of its choices."""
        rows = []
        for knob in free:
            for index in range(len(self._problem.space.knobs[knob].choices)):
                row = list(centre)
                row[knob] = index
                rows.append(row)
        return as_points(rows, len(centre))
