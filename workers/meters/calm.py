"""Which blocks of a comparison the machine ran at its own pace.

Other guests of a host, and other programs, come and go for seconds at a time and slow two models
down by different shares: an INT8 network beside its float one read 0.40 in some blocks and 0.52
in others of the same quarter of a minute, on two cores of a shared host. What is wanted is the
ratio on the undisturbed machine, so the blocks that ran slowly are left out of the estimate (their
raw times are kept).

A block's pace is the mean of the logarithms of both models' medians. It does not change when the
two names are swapped, so leaving blocks out by it leaves the signs of the log-ratios what they
were: where one file is compared with itself, fair coins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.meters.quantiles import Times

TOLERANCE = 0.05
"""How much slower than the fastest block one may be that counts as undisturbed. Blocks of twenty
rounds on an idle machine spread by 1 to 3 %; a busy neighbour slows them by 20 % and more."""


def paces(candidate_ms: Times, baseline_ms: Times) -> NDArray[np.float64]:
    """Return the mean of the logarithms of both medians, one per block.

    Args:
        candidate_ms: Blocks x rounds, NaN where a block was shorter.
        baseline_ms: Of the same blocks.
    """
    medians = np.nanmedian(np.stack([candidate_ms, baseline_ms]), axis=2)
    return np.asarray(np.log(medians).mean(axis=0))


def undisturbed(found: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which blocks ran at most `TOLERANCE` slower than the fastest, by their paces."""
    return np.asarray(found <= found.min() + np.log1p(TOLERANCE))


def calmest(found: NDArray[np.float64], fewest: int) -> NDArray[np.bool_]:
    """Return the undisturbed blocks, filled up with the next fastest to `fewest`.

    Args:
        found: The blocks' paces.
        fewest: How many to have where there are as many.
    """
    chosen = undisturbed(found)
    if np.count_nonzero(chosen) < fewest:
        chosen[np.argsort(found, kind="stable")[:fewest]] = True
    return chosen
