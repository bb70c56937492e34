"""The encoder's choice of histograms for one tensor's symbols: the shortest description wins."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compression.container_symbols import (
    LEVELS_PER_OCTAVE,
    MAX_BIN,
    Axis,
    Coding,
    Form,
    bell,
    class_map,
    slope,
)

# Octaves of mean information per bin of an axis.
_BIN_STEPS = (0.1, 0.2, 0.4)
# Below this, a histogram of levels is short; above, the grid of bells is slow.
_BELL_ALPHABETS = range(24, 1025)
_SLOPES_A = np.r_[0, np.arange(34, 78)]
_SLOPES_B = np.r_[0, np.arange(1, 72, 2)]
_FLOORS = (6, 8, 10, 12, 15, 20, 30)
_TOTAL_BITS = 24


def fit(
    symbols: NDArray[np.int32], alphabet: int, divisions: Sequence[tuple[int, int]], centre: int
) -> tuple[Coding, float]:
    """Choose the histograms of a tensor's symbols.

    Args:
        symbols: All symbols, in order.
        alphabet: They are below it.
        divisions: `inner` and number of bins of the axes that may be used, at most two.
        centre: Symbol at which a bell would have its top.

    Returns:
        The histograms, and the bytes that they and the symbols take.
    """
    if alphabet < 2:
        return Coding(alphabet, (), Form.COUNTS, np.ones((1, alphabet), np.int64)), 0.0
    best: tuple[Coding, float] | None = None
    for axes in _axes(symbols, alphabet, divisions):
        classes = class_map(axes, len(symbols))
        if classes is None:
            counts = np.bincount(symbols, minlength=alphabet)[None]
        else:
            span = int(classes.max()) + 1
            # Python integers of this size fit: 127 classes of 2^16 symbols.
            joint = classes.astype(np.int64) * alphabet + symbols
            counts = np.bincount(joint, minlength=span * alphabet).reshape(span, alphabet)
            counts = counts[counts.any(1)]
            if len(counts) * alphabet > len(symbols):
                continue
        for form, parameters in _forms(counts, centre):
            coding = Coding(alphabet, axes, form, parameters, centre)
            size = code_bytes(counts, coding.weights()) + _told_bytes(coding)
            if best is None or size < best[1]:
                best = coding, size
    assert best is not None  # without axes every form is allowed
    return best


def code_bytes(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> float:
    """Return the bytes of symbols that occur `counts` times, coded under `weights`."""
    shares = weights / weights.sum(1, keepdims=True)
    slots = 2.0**_TOTAL_BITS
    widths = shares * (slots - weights.shape[1]) + 1
    return float((counts * (_TOTAL_BITS - np.log2(widths))).sum() / 8)


def entropy_bytes(data: bytes | NDArray[np.uint8]) -> float:
    """Return the order-0 entropy of bytes, in bytes."""
    counts = np.bincount(np.frombuffer(data, np.uint8)) if len(data) else np.zeros(1)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8) if len(counts) else 0.0


def _told_bytes(coding: Coding) -> float:
    if coding.form is Form.COUNTS:
        # A count takes its own length and about three bits more, measured in real tables.
        bins = b"".join(axis.bins.tobytes() for axis in coding.axes)
        told = float(np.log2(coding.parameters + 1.0).sum()) + 3.0 * coding.parameters.size
        return told / 8 + entropy_bytes(bins) + 6
    table, steps = coding.write()
    # Both share a compressed section with those of other tensors.
    return min(len(table), 8 + 0.9 * entropy_bytes(table)) + entropy_bytes(steps) + 0.5


def _axes(
    symbols: NDArray[np.int32], alphabet: int, divisions: Sequence[tuple[int, int]]
) -> Iterator[tuple[Axis, ...]]:
    yield ()
    counts = np.bincount(symbols, minlength=alphabet)
    rare = np.log2(len(symbols) / np.maximum(counts, 1)).astype(np.float32)
    information = rare[symbols]
    mean = float(information.mean())
    if mean <= 0:
        return
    margins = []
    for inner, count in divisions:
        if inner * count == 0 or len(symbols) % (inner * count) or count < 2:
            continue
        means = information.reshape(-1, count, inner).mean((0, 2), dtype=np.float64)
        margins.append((inner, np.log2(np.maximum(means / mean, 2.0**-12))))
    for step in _BIN_STEPS:
        axes = []
        for inner, margin in margins:
            places = np.rint(margin / step).astype(np.int64)
            # Rows that say nothing (all zero) lie far below the others.
            places = np.minimum(places - max(places.min(), places.max() - MAX_BIN), MAX_BIN)
            # Unused bins are closed, so that the bins' bytes stay small.
            bins = np.unique(np.maximum(places, 0), return_inverse=True)[1].astype(np.uint8)
            if bins.max() > 0:
                axes.append(Axis(inner, bins))
        yield from ((axis,) for axis in axes)
        if len(axes) == 2:
            yield tuple(axes)


def _forms(counts: NDArray[np.int64], centre: int) -> Iterator[tuple[Form, NDArray[np.int64]]]:
    yield Form.COUNTS, counts
    octaves = np.log2(np.maximum(counts, 1))
    for form, per_octave in LEVELS_PER_OCTAVE.items():
        yield form, np.where(counts > 0, np.rint(octaves * per_octave).astype(np.int64) + 1, 0)
    if counts.shape[1] in _BELL_ALPHABETS:
        yield Form.BELL, _fit_bells(counts, centre)


def _fit_bells(counts: NDArray[np.int64], centre: int) -> NDArray[np.int64]:
    """Fit a bell to each class: first without a floor, where the code length has a closed form."""
    alphabet = counts.shape[1]
    a, b, log_sums = _bell_grid(alphabet, centre)
    distance = np.abs(np.arange(alphabet) - centre).astype(np.float64)
    first, second, total = counts @ distance, counts @ distance**2, counts.sum(1)
    found = np.empty((len(counts), 3), np.int64)
    for row in range(len(counts)):
        length = a[:, None] * first[row] + b * second[row] + total[row] * log_sums
        i, j = np.unravel_index(int(length.argmin()), length.shape)
        choices = np.array([(_SLOPES_A[i], _SLOPES_B[j], floor) for floor in _FLOORS])
        weights = bell(choices, alphabet, centre)
        sizes = [code_bytes(counts[row], option[None]) for option in weights]
        found[row] = choices[int(np.argmin(sizes))]
    return found


@functools.lru_cache(maxsize=16)
def _bell_grid(
    alphabet: int, centre: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the slopes in octaves and log2 of the bells' sums, `A x B`."""
    a, b = (slope(indices) * 2.0**-19 for indices in (_SLOPES_A, _SLOPES_B))
    distance = np.abs(np.arange(alphabet) - centre).astype(np.float64)
    falls = np.exp2(-np.outer(a, distance)) @ np.exp2(-np.outer(b, distance**2)).T
    return a.astype(np.float64), b.astype(np.float64), np.log2(falls).astype(np.float64)
