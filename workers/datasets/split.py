"""Which part each row belongs to: declared by the user, or dealt out by seed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from compression.errors import DataRefused
from workers.datasets.dataset import PARTS
from workers.job import Splits

MIN_PART_ROWS = 8
"""Fewer images say nothing about accuracy, and give BatchNorm no statistics."""

TRAIN, CALIBRATION, SEARCH, TEST = range(len(PARTS))
CALIBRATION_SHARE = 0.1
"""Of the training rows, where a declared split has no calibration rows and no share is asked."""

Labels = NDArray[np.int64]


def check_shares(splits: Splits) -> None:
    """Require shares that sum to 1, with something to search on, to test on and to learn from.

    Raises:
        DataRefused: Naming the share and its value.
    """
    shares = {name: float(getattr(splits, name)) for name in PARTS}
    for name, share in shares.items():
        if not math.isfinite(share) or not 0 <= share <= 1:
            raise DataRefused(f"splits.{name} is {share}; a share lies in [0, 1]")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise DataRefused(f"The splits sum to {sum(shares.values()):.6g}; they must sum to 1")
    for name in ("calibration", "search", "test"):
        if not shares[name]:
            raise DataRefused(f"splits.{name} is 0; it must be greater than 0")


def assign_parts(
    rows: int, labels: Labels | None, declared: NDArray[np.int8] | None, splits: Splits
) -> NDArray[np.int8]:
    """Return the part of each row, `rows` int8: same arguments, same parts.

    A declared split is kept as it is, but for one case: where it has no calibration rows, a
    stratified slice of its training rows (of the relative size that `splits` gives) becomes them.
    Without one, every class is dealt out in the asked shares.

    Args:
        rows: Number of images.
        labels: `rows` int64, or None.
        declared: `rows` int8 of 0 train, 1 calibration, 2 search, 3 test; or None.
        splits: Shares and seed.

    Raises:
        DataRefused: Shares are impossible, or a part is smaller than 8 rows.
    """
    rng = np.random.default_rng(splits.seed)
    if declared is None:
        check_shares(splits)
        shares = [getattr(splits, name) for name in PARTS]
        parts = _deal(np.arange(rows), labels, shares, rng)
    else:
        parts = declared.astype(np.int8)
        train = np.flatnonzero(parts == TRAIN)
        if not (parts == CALIBRATION).any() and len(train):
            both = splits.train + splits.calibration
            share = splits.calibration / both if splits.calibration else CALIBRATION_SHARE
            inner = None if labels is None else labels[train]
            parts[train] = _deal(train, inner, [1 - share, share, 0, 0], rng)
    for number in (CALIBRATION, SEARCH, TEST):
        count = int((parts == number).sum())
        if count < MIN_PART_ROWS:
            hint = ""
            if number == CALIBRATION and not count:
                hint = " (and there are no training rows to take them from)"
            raise DataRefused(
                f"The {PARTS[number]} part has {count} of {rows} rows{hint}; "
                f"at least {MIN_PART_ROWS} are required"
            )
    return parts


def halves(labels: Labels, seed: int) -> NDArray[np.int8]:
    """Return `search` for one half of the rows and `test` for the other, stratified, by seed."""
    rng = np.random.default_rng(seed)
    return _deal(np.arange(len(labels)), labels, [0, 0, 0.5, 0.5], rng)


def _deal(
    rows: NDArray[np.int64],
    labels: Labels | None,
    shares: list[float],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Deal rows to parts, class after class, each row to the part that lags most.

    Rows are shuffled within a class, so the assignment is random; walking through the classes one
    after the other with the running lag keeps each class, and the whole, within one row or so of
    its shares.
    """
    order = rng.permutation(len(rows))
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    counts = [0.0] * len(shares)
    parts = np.empty(len(rows), dtype=np.int8)
    for place, row in enumerate(order.tolist(), start=1):
        lags = [share * place - count for share, count in zip(shares, counts, strict=True)]
        part = max(range(len(shares)), key=lags.__getitem__)
        counts[part] += 1
        parts[row] = part
    return parts
