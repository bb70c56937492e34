"""Prediction intervals without assumptions on the errors, from models that each miss one reading.

Reference:
    Barber, Candes, Ramdas & Tibshirani (2021), "Predictive inference with the jackknife+", Annals
    of Statistics 49(1), https://arxiv.org/abs/1905.02928, equation 1.3, and section 3 for models
    that miss several (CV+). Coverage of exchangeable data is at least about 1 - 2 alpha, and close
    to 1 - alpha in practice.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def jackknife_plus(
    predictions: NDArray[np.float64], residuals: NDArray[np.float64], alpha: float
) -> tuple[float, float]:
    """Return the interval of one new value.

    Args:
        predictions: Of the new value, by each of the n models that miss one observation.
        residuals: Absolute error of each model on the observation that it misses.
        alpha: Share of new values that may fall outside. With n below 1 / alpha - 1 no finite
            interval misses that few: the widest one is returned, which misses about 1 / (n + 1).

    Raises:
        ValueError: There is no model, or the two lengths differ.
    """
    count = len(predictions)
    if count == 0 or len(residuals) != count:
        raise ValueError(f"{count} predictions and {len(residuals)} residuals; need n and n, n > 0")
    rank = min(count, math.ceil((1 - alpha) * (count + 1) - 1e-9))
    low = np.sort(predictions - residuals)[count - rank]
    high = np.sort(predictions + residuals)[rank - 1]
    return float(min(low, high)), float(max(low, high))
