"""Projection of points onto the bounds that arithmetic decides.

AMC's clamp, generalised: one factor shrinks (or grows) the kept channels of every site until the
exact cost meets the bound. Bisection on the factor, on integer points: what is returned is what
would be applied. Monotone: fewer channels never cost more.

Reference:
    Y. He et al., AMC, ECCV 2018, algorithm 1 (the clamp, there layer by layer).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compression.space import PlanSpace, Point
from search.arithmetic import Arithmetic, Floats, Points, as_points
from search.problem import Problem

HALVINGS = 14
"""Steps of bisection: a factor known to 1 / 16384 separates any two neighbouring widths."""


class Repair:
    """Moves points along the ray of a common factor until the arithmetic bounds hold."""

    def __init__(self, problem: Problem) -> None:
        """Prepare the grid of kept channels."""
        self.space: PlanSpace = problem.space
        self.arithmetic = Arithmetic(problem)
        knobs = problem.space.knobs
        self._columns = np.array(
            [i for i, knob in enumerate(knobs) if knob.field == "keep_channels"], dtype=np.int64
        )
        longest = max((len(knobs[i].choices) for i in self._columns), default=1)
        self._grid = np.full((len(self._columns), longest), np.inf)
        for row, column in enumerate(self._columns):
            choices = knobs[column].choices
            self._grid[row, : len(choices)] = [float(choice) for choice in choices]
        finite = np.where(np.isfinite(self._grid), self._grid, 0.0)
        self._largest_factor = (
            float((finite.max(axis=1) / self._grid[:, 0]).max()) if len(self._columns) else 1.0
        )
        self._is_upper = np.array(
            [c.at_most is not None for c in self.arithmetic.constraints], dtype=bool
        )

    def scaled(self, points: Points, factors: Floats) -> Points:
        """Return `t x d` points whose kept channels are at most `factor` times as many.

        Never below the smallest or above the largest choice; a factor of 1 changes nothing.
        """
        out = points.copy()
        if len(self._columns):
            indices = points[:, self._columns]
            kept = self._grid[np.arange(len(self._columns)), indices]
            target = kept * factors[:, None] * (1 + 1e-12)
            fits = (self._grid[None] <= target[:, :, None]).sum(axis=2) - 1
            out[:, self._columns] = np.maximum(fits, 0)
        return out

    def _excess(self, points: Points, slack: Floats | float, upper: bool) -> Floats:
        over = np.maximum(self.arithmetic.violations(points) - slack, 0.0)
        return np.asarray(over[:, self._is_upper == upper].sum(axis=1))

    def _largest_within(
        self, points: Points, low: float, high: float, slack: Floats | float
    ) -> Points:
        """Return each point at the largest factor in [low, high] that keeps the upper bounds."""
        lows = np.full(len(points), np.log(low))
        highs = np.full(len(points), np.log(high))
        best = self.scaled(points, np.exp(lows))
        for _ in range(HALVINGS):
            middle = (lows + highs) / 2
            trial = self.scaled(points, np.exp(middle))
            fits = self._excess(trial, slack, upper=True) <= 0
            best[fits] = trial[fits]
            lows, highs = np.where(fits, middle, lows), np.where(fits, highs, middle)
        return best

    def shrink(self, points: Points, slack: Floats | float = 0.0) -> Points:
        """Return `t x d` points that keep the bounds, shrunk only where they must be.

        Where a bound cannot be kept, the point with the fewest channels. Lower bounds (`at_least`)
        are met by growing, where the upper bounds allow.

        Args:
            points: `t x d`.
            slack: Violation that is still allowed, one for all or one per constraint.
        """
        out = points.copy()
        if not self.arithmetic.constraints or not len(points):
            return out
        over = self._excess(out, slack, upper=True) > 0
        if over.any():
            out[over] = self._largest_within(out[over], 1 / self._largest_factor, 1.0, slack)
        if not self._is_upper.all():
            under = self._excess(out, slack, upper=False) > 0
            out[under] = self._largest_within(out[under], 1.0, self._largest_factor, slack)
        return out

    def fill(self, points: Points, slack: Floats | float = 0.0) -> Points:
        """Return the points grown by one factor each as far as the upper bounds allow.

        Points that break a bound are shrunk instead. Without arithmetic bounds nothing changes.
        """
        out = self.shrink(points, slack)
        if not self._is_upper.any() or not len(points):
            return out
        fits = self._excess(out, slack, upper=True) <= 0
        out[fits] = self._largest_within(out[fits], 1.0, self._largest_factor, slack)
        return out

    def keeps_bounds(self, points: Points, slack: Floats | float = 0.0) -> NDArray[np.bool_]:
        """Return for each point whether the arithmetic bounds hold."""
        return np.asarray(self.arithmetic.excess(points, slack) <= 0)

    def reachable(self) -> bool:
        """Whether some plan keeps all arithmetic bounds, as far as one factor can tell."""
        ends = as_points([self.space.smallest(), self.space.dense()], len(self.space.knobs))
        return bool(self.keeps_bounds(self.shrink(ends)).any())


def as_point(row: Points) -> Point:
    """Return one row of a batch as a point."""
    return tuple(int(index) for index in row)
