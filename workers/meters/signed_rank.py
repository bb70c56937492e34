"""The Hodges-Lehmann estimate with the interval of the Wilcoxon signed-rank test.

The estimate is the median of the Walsh averages (x_i + x_j) / 2, i <= j; its interval holds the
centres that the signed-rank test does not reject, which are those between two order statistics of
the same averages. Both ask for nothing but symmetry around the centre: no normal distribution, no
equal variances. Where signs were drawn by lot, symmetry is no assumption but a fact of the design
(Fisher, *The Design of Experiments*, 1935).

Reference: F. Wilcoxon, "Individual comparisons by ranking methods", 1945; J. L. Hodges and
E. L. Lehmann, "Estimates of location based on rank tests", 1963.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from search.measurement import Interval

FEWEST = 6
"""Values below which the test never rejects at 5 %: 2 / 2^5 is more, 2 / 2^6 less."""

CONFIDENCE = 0.95


def centre(values: NDArray[np.float64]) -> Interval:
    """Return the Hodges-Lehmann estimate with its exact interval of at least 95 %.

    Ties and values at the centre only make the interval hold more often.

    Args:
        values: n >= `FEWEST` finite values.

    Raises:
        ValueError: There are fewer values.
    """
    n = len(values)
    if n < FEWEST:
        raise ValueError(f"{n} values have no 95 % signed-rank interval; {FEWEST} do")
    first, second = np.triu_indices(n)
    averages = np.sort((values[first] + values[second]) / 2)
    rank = lowest_rank(n)
    return Interval(
        value=float(np.median(averages)),
        low=float(averages[rank - 1]),
        high=float(averages[-rank]),
    )


@functools.lru_cache(maxsize=256)
def lowest_rank(n: int) -> int:
    """Return the 1-based rank of the Walsh average that is the interval's lower end.

    It is the largest k with P(W <= k - 1) <= 2.5 %, where W is the sum of those of the ranks
    1..n whose sign a fair coin made positive; 0 where there is none.
    """
    chance = np.ones(1)
    for rank in range(1, n + 1):
        longer = np.zeros(len(chance) + rank)
        longer[: len(chance)] += chance / 2
        longer[rank:] += chance / 2
        chance = longer
    tail = (1 - CONFIDENCE) / 2
    return int(np.searchsorted(np.cumsum(chance), tail * (1 + 1e-12), side="right"))


def sign_free_width(values: NDArray[np.float64]) -> float:
    """Estimate the width of `centre`'s interval from the sizes |x| alone.

    For deciding when there are enough values: whoever stops by something that the signs have no
    part in leaves the signs what they were, fair coins when nothing differs, so that a test of
    the signs keeps its level wherever it was stopped. Stopping by the interval itself would
    not, because a lucky run of equal signs makes it narrow.

    Where the sizes are as far apart as they are large, folding at 0 has made them narrower than
    the values: by the deviation of a half-normal beside a normal distribution's, 0.603.

    Args:
        values: n >= `FEWEST` finite values.
    """
    sizes = np.abs(values)
    interval = centre(sizes)
    width = interval.high - interval.low
    median = float(np.median(sizes))
    deviation = 1.4826 * float(np.median(np.abs(sizes - median)))
    return width / 0.603 if median < 2.5 * deviation else width
