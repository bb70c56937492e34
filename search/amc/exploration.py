"""Noise of AMC's actions: a normal distribution cut to [0, 1] that narrows with the episodes.

Reference:
    Y. He et al.: AMC, ECCV 2018, section 3.3: a ~ TN(mu(s), sigma^2, 0, 1), sigma = 0.5 in the
    warm-up, then decaying exponentially.
"""

from __future__ import annotations

import numpy as np


def sigma(start: float, decay: float, episode: int, warmup: int) -> float:
    """Return the noise of an episode: start * decay ** (episode - warmup) after the warm-up."""
    return float(start * decay ** max(0, episode - warmup))


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """Draw from a normal distribution, cut to [0, 1], by inverting its distribution function.

    Args:
        mean: Of the uncut distribution, in [0, 1].
        deviation: Of the uncut distribution; 0 returns the mean.
        rng: One draw is taken.
    """
    from scipy.special import ndtr, ndtri

    share = rng.random()
    if deviation <= 0:
        return mean
    low, high = ndtr(-mean / deviation), ndtr((1 - mean) / deviation)
    drawn = mean + deviation * float(ndtri(low + share * (high - low)))
    return min(1.0, max(0.0, drawn))
