"""How a finished walk is fitted to its budget: by one factor on the widths, then by fewer bits.

Reference:
    Bits in turn until a table says that the budget is kept: K. Wang et al.: HAQ, CVPR 2019. Here
    sizes and times are predicted, from the cost table and the readings so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from compression.space import Point
from search.amc.state import Walk
from search.arithmetic import as_points
from search.history import History
from search.problem import Problem
from search.repair import Repair, as_point
from search.surrogate.additive import Additive, allowed


class Fitting:
    """Fits points to the bounds on cost, exact ones always, measured ones as predicted."""

    def __init__(self, problem: Problem, walk: Walk, repair: Repair, *, grows: bool) -> None:
        """Prepare the predictions.

        Args:
            problem: Its bounds.
            walk: Whose bits may be lowered.
            repair: Of the same problem.
            grows: Whether walks below the budget grow to it, as far as measured bounds are
                expected to hold; else they are only shrunk.
        """
        self._repair = repair
        self._grows = grows
        self._bits = [step for step in walk.steps if step.kind == "bits"]
        self._reachable = repair.reachable()
        self._additive = Additive(problem)

    def fitted(self, point: Sequence[int], history: History) -> Point:
        """Return a walked point within the bounds on cost, as far as it can be told.

        Args:
            point: As walked.
            history: What the predictions are learned from.
        """
        if self._grows or self._bits:
            self._additive.learn(history)
        row = as_points([point], len(point))
        if self._grows:
            filled = as_point(self._repair.fill(row)[0])
            if self._allowed(filled):
                return filled
        return self._lowered(as_point(self._repair.shrink(row)[0]))

    def _allowed(self, point: Point) -> bool:
        return bool(allowed(self._additive.loads(as_points([point], len(point))))[0])

    def _lowered(self, point: Point) -> Point:
        """Return a point with fewer bits, layer by layer in turn, until all loads are allowed."""
        if not self._reachable:
            return point
        for _ in range(max((len(step.order) for step in self._bits), default=0)):
            for step in self._bits:
                if self._allowed(point):
                    return point
                place = step.order.index(point[step.column])
                lower = step.order[max(0, place - 1)]
                point = (*point[: step.column], lower, *point[step.column + 1 :])
        return point
