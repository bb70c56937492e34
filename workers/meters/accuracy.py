"""Shares classified right, and how sure they are."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.measurement import Interval, Reading, Split

Logits = NDArray[np.floating[Any]]
"""`n x classes`, any scale."""

Z_95 = NormalDist().inv_cdf(0.975)


def accuracy(
    logits: Logits,
    labels: NDArray[np.integer[Any]] | None,
    baseline_logits: Logits | None,
    split: Split,
) -> list[Reading]:
    """Return top1 and top5 where there are labels, and agreement where there is a baseline.

    An input with a non-finite logit counts as wrong and as disagreement, and the readings say so.

    Args:
        logits: Of the compressed model.
        labels: `n`, or None for unlabelled data.
        baseline_logits: Of the original model on the same inputs, or None.
        split: Which data these inputs are.

    Returns:
        Readings with 95 % Wilson intervals (Wilson, 1927).

    Raises:
        ValueError: There are no inputs, or the arrays do not fit each other.
    """
    n, classes = logits.shape
    broken = int(n - np.count_nonzero(_finite(logits)))
    warning = None
    if broken:
        warning = f"{broken} of {n} inputs gave non-finite outputs; they count as wrong"
    hits: dict[str, NDArray[np.bool_]] = {}
    if labels is not None:
        hits["top1"] = in_top(logits, labels, 1)
        hits["top5"] = in_top(logits, labels, min(5, classes))
    if baseline_logits is not None:
        if baseline_logits.shape != logits.shape:
            raise ValueError(f"Logits are {logits.shape}; the baseline's {baseline_logits.shape}")
        decided = np.argmax(np.where(np.isnan(baseline_logits), -np.inf, baseline_logits), axis=1)
        hits["agreement"] = in_top(logits, decided, 1)
    readings = []
    for metric, right in hits.items():
        share = wilson(int(np.count_nonzero(right)), n)
        readings.append(
            Reading(
                metric=metric,
                value=share.value,
                low=share.low,
                high=share.high,
                n=n,
                split=split,
                warning=warning,
            )
        )
    return readings


def in_top(logits: Logits, labels: NDArray[np.integer[Any]], k: int) -> NDArray[np.bool_]:
    """Return for each input whether its label is among the `k` largest logits.

    Of equal logits the lower class comes first, as in `argmax`, so that a constant model does
    not count as right. Inputs with a non-finite logit are wrong.

    Raises:
        ValueError: The shapes do not fit or a label is not a class.
    """
    n, classes = logits.shape
    if labels.shape != (n,):
        raise ValueError(f"Labels are {labels.shape}; logits {logits.shape} need ({n},)")
    if n and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"Labels are {labels.min()}..{labels.max()}; there are {classes} classes")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    lower_class = np.arange(classes)[None, :] < labels[:, None]
    before = np.count_nonzero((logits > own) | ((logits == own) & lower_class), axis=1)
    right: NDArray[np.bool_] = np.logical_and(before < k, _finite(logits))
    return right


def wilson(hits: int, n: int) -> Interval:
    """Return hits / n with its 95 % score interval (Wilson, 1927).

    Raises:
        ValueError: `n` is 0 or `hits` is outside 0..n.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} hits of {n} inputs; at least 1 input is required")
    p, z2 = hits / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and n hits an end equals p exactly; rounding must not put it on the wrong side.
    return Interval(
        value=p, low=max(0.0, min(centre - half, p)), high=min(1.0, max(centre + half, p))
    )


def accuracy_drop(
    logits: Logits, baseline_logits: Logits, labels: NDArray[np.integer[Any]]
) -> Interval:
    """Return the baseline's top-1 minus the model's on the same inputs; positive is a loss.

    95 % by the adjusted Wald interval for paired proportions (Bonett & Price, 2012): only inputs
    on which exactly one of the two is right count, so it is much narrower than the two separate
    intervals suggest.

    Raises:
        ValueError: There are no inputs, or the arrays do not fit each other.
    """
    n = len(labels)
    if n == 0:
        raise ValueError("0 inputs; at least 1 is required")
    right, baseline_right = in_top(logits, labels, 1), in_top(baseline_logits, labels, 1)
    lost = int(np.count_nonzero(baseline_right & ~right))
    won = int(np.count_nonzero(right & ~baseline_right))
    value = (lost - won) / n
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    centre = p_lost - p_won
    half = Z_95 * math.sqrt((p_lost + p_won - centre**2) / (n + 2))
    return Interval(
        value=value,
        low=max(-1.0, min(centre - half, value)),
        high=min(1.0, max(centre + half, value)),
    )


def _finite(logits: Logits) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(logits).all(axis=1))
