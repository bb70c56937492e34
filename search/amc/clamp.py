"""AMC's resource-constrained action: no layer may keep more than the rest can pay for.

Reference:
    Y. He et al.: AMC, ECCV 2018, algorithm 1. With every undecided layer at its floor, `other` is
    the cost that the decision does not touch and `this` what it multiplies; the keep ratio is at
    most (target - other) / this, and at least the floor.

Deviations:
    * The cost table decides among the allowed widths, so what is found is exact also where a cost
      is not linear in the width, and for several bounds at once.
    * Where the floors themselves break a bound, they fall to the smallest widths of the space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.arithmetic import as_points
from search.repair import Repair


class Clamp:
    """Limits widths one by one, in the order in which they are decided.

    Law: when the floors keep the upper bounds, so does every plan whose widths were limited in
    turn, each with the later ones at their floors.

    Attributes:
        floors: Column of each `keep_channels` knob to the smallest index it may take.
    """

    def __init__(self, repair: Repair, lbound: float) -> None:
        """Find the floors.

        Args:
            repair: Of the problem.
            lbound: Smallest keep ratio of a site, in (0, 1].
        """
        self._arithmetic = repair.arithmetic
        self._is_upper = np.array(
            [c.at_most is not None for c in self._arithmetic.constraints], dtype=bool
        )
        self.floors: dict[int, int] = {}
        for column, knob in enumerate(repair.space.knobs):
            if knob.field == "keep_channels":
                widths = np.array(knob.choices, dtype=np.float64)
                # A hair below: 0.2 * 5 channels is 1, whatever the rounding of the product.
                self.floors[column] = int(np.argmax(widths >= lbound * widths[-1] - 1e-9))
        if not self._keep([self.at_floors(repair.space.dense())])[0]:
            self.floors = dict.fromkeys(self.floors, 0)

    def at_floors(self, point: Sequence[int]) -> list[int]:
        """Return the point with every width at its floor."""
        out = list(point)
        for column, floor in self.floors.items():
            out[column] = floor
        return out

    def highest(self, point: Sequence[int], column: int, index: int) -> int:
        """Return the largest affordable index of one width that is not above `index`.

        Args:
            point: Decided widths, and the undecided ones at their floors.
            column: The width that is being decided.
            index: What is wished for.

        Returns:
            The floor where nothing larger fits.
        """
        floor = self.floors[column]
        wished = max(index, floor)
        if not self._is_upper.any():
            return wished
        rows = as_points([point] * (wished - floor + 1), len(point))
        rows[:, column] = np.arange(floor, wished + 1)
        fits = np.flatnonzero(self._keep(rows))
        return floor + int(fits[-1]) if len(fits) else floor

    def _keep(self, points: object) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        rows = np.asarray(points, dtype=np.int64)
        over = self._arithmetic.violations(rows)[:, self._is_upper]
        return np.asarray((over <= 0).all(axis=1))
