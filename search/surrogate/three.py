"""Three numbers for the widths of a whole network: how much, where in depth, at which size.

The share of channels that site i keeps is `c0 + c1 depth_i + c2 size_i`, clipped to the knob's
range and then moved to the arithmetic bounds. Some dozen trials say little of fifty knobs; they say
much of three.

Reference:
    The one-dimensional case, a single global ratio, is Condensa's (V. Joseph et al.: A Programmable
    Approach to Neural Network Compression, IEEE Micro 40(5), 2020).

Deviations:
    * Two slopes beside the level. What one wants of them is how sensitive sites are; an agent knows
      no sensitivities, but the order of the sites and what each costs.
    * Any point has three coordinates, not only those drawn here: the least-squares fit of its
      shares. The surrogate sees what was applied after rounding and repair.
"""

from __future__ import annotations

import numpy as np

from compression.space import Knob
from search.arithmetic import Arithmetic, Floats, Points, as_points
from search.problem import Problem

LEVELS, SLOPES = (0.05, 1.0), (-1.0, 1.0)
"""Ranges of c0, and of c1 and c2."""

FEWEST = 4
"""Sites with fewer channel knobs than this need no three numbers."""


class Three:
    """Maps points to three coordinates and back."""

    def __init__(self, problem: Problem) -> None:
        """Prepare depth and size of each site, both in [-0.5, 0.5]."""
        knobs = problem.space.knobs
        self._knobs = knobs
        self.columns = channel_columns(knobs)
        count = len(self.columns)
        self._shares = [
            np.array([float(c) for c in knobs[i].choices]) / float(knobs[i].choices[-1])
            for i in self.columns
        ]
        depth = np.linspace(-0.5, 0.5, count) if count > 1 else np.zeros(count)
        self._basis = np.stack([np.ones(count), depth, self._sizes(problem)])
        self._inverse = np.linalg.pinv(self._basis.T)

    def _sizes(self, problem: Problem) -> Floats:
        """Return for each site the logarithm of the MACs it decides about, scaled."""
        dense = list(problem.space.dense())
        without = [
            [0 if i == column else index for i, index in enumerate(dense)]
            for column in self.columns
        ]
        macs = Arithmetic(problem).costs(as_points([dense, *without], len(dense))).macs
        sizes = np.log(np.maximum(macs[0] - macs[1:], 1).astype(np.float64))
        low, high = sizes.min(initial=np.inf), sizes.max(initial=-np.inf)
        return (sizes - low) / (high - low) - 0.5 if high > low else np.zeros(len(sizes))

    def coordinates(self, points: Points) -> Floats:
        """Return `t x 3` least-squares coordinates, in about [0, 1], of `t x d` points."""
        shares = np.stack(
            [s[points[:, c]] for c, s in zip(self.columns, self._shares, strict=True)], axis=1
        )
        level, depth, size = (shares @ self._inverse.T).T
        return np.stack([level, (depth + 1) / 2, (size + 1) / 2], axis=1)

    def points(self, coordinates: Floats, others: Points) -> Points:
        """Return the points nearest to `t x 3` coordinates; other knobs as in `t x d` `others`."""
        raw = np.column_stack([coordinates[:, 0], 2 * coordinates[:, 1:] - 1])
        wanted = raw @ self._basis
        out = others.copy()
        for number, (column, shares) in enumerate(zip(self.columns, self._shares, strict=True)):
            distances = np.abs(shares[None] - wanted[:, number, None])
            out[:, column] = distances.argmin(axis=1)
        return out

    def draw(self, rng: np.random.Generator, count: int) -> Points:
        """Draw `count x d` points, uniform in the coordinates and in the other knobs."""
        coordinates = rng.random((count, 3))
        coordinates[:, 0] = LEVELS[0] + (LEVELS[1] - LEVELS[0]) * coordinates[:, 0]
        counts = np.array([len(knob.choices) for knob in self._knobs])
        return self.points(coordinates, rng.integers(0, counts, size=(count, len(counts))))

    def around(self, centre: Points, rng: np.random.Generator, count: int, reach: float) -> Points:
        """Return `count x d` points near `d` choices: coordinates moved, rarely another knob."""
        counts = np.array([len(knob.choices) for knob in self._knobs])
        here = np.tile(centre, (count, 1))
        anew = rng.integers(0, counts, size=here.shape)
        others = np.where(rng.random(here.shape) < 0.1, anew, here)
        moves = rng.normal(0.0, reach, size=(count, 3)) * rng.integers(0, 2, size=(count, 3))
        return self.points(self.coordinates(centre[None]) + moves, others)


def channel_columns(knobs: tuple[Knob, ...]) -> list[int]:
    """Return the numbers of the knobs that choose channels."""
    return [i for i, knob in enumerate(knobs) if knob.field == "keep_channels"]
