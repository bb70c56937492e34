"""The plans among which a surrogate chooses: drawn, uniform, and near the best."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from compression.space import Point
from search.arithmetic import Floats, Points, as_points
from search.history import canonical
from search.problem import Problem
from search.repair import Repair
from search.sampling import draw, neighbours, uniform_points
from search.surrogate.three import Three

PLAIN = ("keep_channels", "precision")
"""Knobs of which any two different choices are different plans."""

REACHES = (0.03, 0.15)
"""Standard deviations of moves around the best, in three coordinates."""


class Candidates:
    """Draws points of a space that keep cooled arithmetic bounds."""

    def __init__(
        self, problem: Problem, repair: Repair, count: int, three: Three | None = None
    ) -> None:
        """Prepare.

        Args:
            problem: Its space names the points.
            repair: Of the problem.
            count: Random candidates per request.
            three: Where draws and moves are made in three coordinates.
        """
        self._space = problem.space
        self._repair = repair
        self._count = count
        self._three = three
        self._uniform = uniform_points(self._space, np.linspace(0.1, 1.0, 19).tolist())
        # Then every point stands for itself, which a thousand candidates are not asked one by one.
        self._is_plain = all(knob.field in PLAIN for knob in self._space.knobs)
        self.counts = np.array([len(knob.choices) for knob in self._space.knobs])
        self.ordered = np.array([knob.ordered for knob in self._space.knobs])

    def wide(self, exact: Floats, widest: Points, rng: np.random.Generator) -> Points:
        """Return random and uniform points, half of them grown to the arithmetic bounds.

        Args:
            exact: Violation of each arithmetic bound that is still allowed.
            widest: `d` choices that no point exceeds.
            rng: Of the draws.
        """
        if self._three is not None:
            drawn = self._three.draw(rng, self._count)
        else:
            drawn = draw(self._space, rng, self._count)
        drawn = np.minimum(drawn, widest)
        half = len(drawn) // 2
        filled = np.minimum(self._repair.fill(drawn[:half], exact), widest)
        return np.vstack([filled, self._repair.shrink(drawn[half:], exact), self._uniform])

    def around(
        self, centre: Point, exact: Floats, widest: Points, rng: np.random.Generator
    ) -> Points:
        """Return the neighbours of a point and variations of it."""
        if self._three is not None:
            near = np.vstack(
                [
                    self._three.around(np.array(centre), rng, self._count // 8, reach)
                    for reach in REACHES
                ]
            )
            filled = self._repair.fill(np.minimum(near[::2], widest), exact)
            kept = self._repair.shrink(np.minimum(near[1::2], widest), exact)
            return np.vstack([filled, kept])
        varied = np.minimum(self._perturbed(centre, rng), widest)
        return np.vstack([neighbours(self._space, centre), self._repair.shrink(varied, exact)])

    def steps(self, centre: Point, exact: Floats, rng: np.random.Generator) -> Points:
        """Return where a climb may go from a point: neighbours and exchanges, or small moves."""
        if self._three is None:
            return np.vstack([neighbours(self._space, centre), self._exchanges(centre, rng)])
        near = self._three.around(np.array(centre), rng, 64, REACHES[0])
        return self._repair.shrink(near, exact)

    def _exchanges(self, centre: Point, rng: np.random.Generator) -> Points:
        """Return variations of two knobs each: one up and one down, or anew where unordered.

        At a bound no single knob can grow.
        """
        d = len(self.counts)
        if d < 2:
            return as_points([], d)
        row = np.arange(self._count)
        up = rng.integers(0, d, size=self._count)
        down = (up + rng.integers(1, d, size=self._count)) % d
        out = np.repeat(np.array(centre)[None], self._count, axis=0)
        for knob, sign in ((up, 1), (down, -1)):
            counts = self.counts[knob]
            moved = out[row, knob] + sign * rng.integers(1, np.maximum(2, counts // 4) + 1)
            anew = rng.integers(0, counts)
            out[row, knob] = np.where(self.ordered[knob], np.clip(moved, 0, counts - 1), anew)
        return out

    def _perturbed(self, centre: Point, rng: np.random.Generator) -> Points:
        """Return variations of a point: some knobs moved by some choices each."""
        count, d = self._count // 4, len(self.counts)
        moved = rng.random((count, d)) < rng.uniform(1.0 / d, min(1.0, 8.0 / d), size=(count, 1))
        reach = np.maximum(1, self.counts // 4)
        moves = rng.integers(-reach, reach + 1, size=(count, d))
        shifted = np.clip(np.array(centre) + moves, 0, self.counts - 1)
        anew = rng.integers(0, self.counts, size=(count, d))
        return np.where(moved, np.where(self.ordered, shifted, anew), np.array(centre))

    def admissible(
        self,
        points: Points,
        exact: Floats,
        widest: Points,
        taken: Collection[Point],
    ) -> Points:
        """Return the points within the bounds and widths that are not taken, each once."""
        kept = np.unique(points[self._repair.keeps_bounds(points, exact)], axis=0)
        rows = dict.fromkeys(
            (tuple(row) for row in kept.tolist())
            if self._is_plain
            else (canonical(self._space, row) for row in kept.tolist())
        )
        free = as_points([point for point in rows if point not in taken], len(widest))
        return np.asarray(free[(free <= widest).all(axis=1)])
