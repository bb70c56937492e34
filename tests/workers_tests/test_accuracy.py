"""Shares and their intervals, against closed forms and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search.measurement import Reading
from workers.meters.accuracy import accuracy, accuracy_drop, in_top, wilson

LOGITS = np.array(
    [
        [9, 1, 2, 3, 4, 5, 6],
        [1, 9, 2, 3, 4, 5, 6],
        [9, 1, 2, 3, 4, 5, 6],
        [9, 1, 2, 3, 4, 5, 6],
    ],
    dtype=np.float32,
)
LABELS = np.array([0, 1, 6, 1])
"""Right, right, second best, worst."""


def by_metric(readings: list[Reading]) -> dict[str, Reading]:
    return {reading.metric: reading for reading in readings}


def test_shares_of_a_known_case() -> None:
    readings = by_metric(accuracy(LOGITS, LABELS, LOGITS[::-1], "search"))
    assert list(readings) == ["top1", "top5", "agreement"]
    assert [reading.value for reading in readings.values()] == [0.5, 0.75, 0.5]
    assert all(r.n == 4 and r.split == "search" and r.warning is None for r in readings.values())
    assert all(r.device is None and r.ratio is None for r in readings.values())


def test_without_labels_only_agreement_is_known() -> None:
    readings = accuracy(LOGITS, None, LOGITS, "test")
    assert [(r.metric, r.value, r.split) for r in readings] == [("agreement", 1.0, "test")]


def test_without_a_baseline_only_the_labels_count() -> None:
    assert list(by_metric(accuracy(LOGITS, LABELS, None, "test"))) == ["top1", "top5"]


def test_fewer_than_five_classes_make_top5_trivial() -> None:
    readings = by_metric(accuracy(LOGITS[:, :3], np.array([0, 1, 2, 1]), None, "test"))
    assert readings["top5"].value == 1.0


def test_top_k_agrees_with_sorting() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((200, 12))
    labels = rng.integers(12, size=200)
    for k in (1, 2, 5, 12):
        best = np.argsort(-logits, axis=1)[:, :k]
        assert np.array_equal(in_top(logits, labels, k), (best == labels[:, None]).any(axis=1))


def test_a_constant_model_is_right_on_the_first_class_only() -> None:
    constant = np.zeros((10, 10))
    assert in_top(constant, np.arange(10), 1).tolist() == [True] + [False] * 9
    assert in_top(constant, np.arange(10), 5).tolist() == [True] * 5 + [False] * 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_outputs_count_as_wrong_and_are_said(bad: float) -> None:
    logits = LOGITS.copy()
    logits[0] = bad
    readings = by_metric(accuracy(logits, LABELS, LOGITS, "search"))
    assert readings["top1"].value == 0.25
    assert readings["agreement"].value == 0.75
    expected = "1 of 4 inputs gave non-finite outputs; they count as wrong"
    assert all(reading.warning == expected for reading in readings.values())


def test_a_whole_model_of_nan_is_measured_as_zero() -> None:
    readings = accuracy(np.full((8, 3), np.nan), np.zeros(8, int), np.ones((8, 3)), "search")
    assert [reading.value for reading in readings] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    interval = wilson(hits, n)
    assert interval.value == hits / n
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_is_symmetric_and_holds_its_value_everywhere() -> None:
    for n in (1, 2, 3, 7, 100, 10_000):
        for hits in {0, 1, n // 2, n - 1, n}:
            interval, mirrored = wilson(hits, n), wilson(n - hits, n)
            assert 0 <= interval.low <= interval.value <= interval.high <= 1
            assert interval.low == pytest.approx(1 - mirrored.high)


def test_no_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="0 hits of 0 inputs"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="0 inputs"):
        accuracy_drop(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, int))


@pytest.mark.parametrize(
    ("labels", "baseline", "message"),
    [
        (np.array([0, 1]), None, "need \\(4,\\)"),
        (np.array([0, 1, 2, 7]), None, "there are 7 classes"),
        (np.array([0, 1, 2, -1]), None, "there are 7 classes"),
        (LABELS, LOGITS[:2], "the baseline's \\(2, 7\\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    labels: NDArray[Any], baseline: NDArray[Any] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy(LOGITS, labels, baseline, "search")


def one_hot(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return logits of two classes that are right, for label 0, where asked."""
    return np.stack([right, ~right], axis=1).astype(float)


def test_a_drop_is_the_paired_difference() -> None:
    baseline = np.array([True] * 90 + [False] * 10)
    model = np.array([True] * 84 + [False] * 6 + [True] * 2 + [False] * 8)
    drop = accuracy_drop(one_hot(model), one_hot(baseline), np.zeros(100, int))
    assert drop.value == pytest.approx(0.04)
    # Bonett & Price (2012), equation 6, by hand: p = 7/102 and 3/102.
    half = 1.959964 * math.sqrt((10 / 102 - (4 / 102) ** 2) / 102)
    assert drop.low == pytest.approx(4 / 102 - half)
    assert drop.high == pytest.approx(4 / 102 + half)


def test_a_drop_is_negative_when_the_model_is_better() -> None:
    better, worse = one_hot(np.array([True] * 9)), one_hot(np.array([True] * 6 + [False] * 3))
    drop = accuracy_drop(better, worse, np.zeros(9, int))
    assert drop.value == pytest.approx(-3 / 9)
    assert accuracy_drop(worse, better, np.zeros(9, int)).value == pytest.approx(3 / 9)


def test_extreme_drops_hold_their_value() -> None:
    for n in (1, 2, 50):
        all_right, all_wrong = one_hot(np.ones(n, bool)), one_hot(np.zeros(n, bool))
        drop = accuracy_drop(all_wrong, all_right, np.zeros(n, int))
        assert drop.value == drop.high == 1.0
        assert accuracy_drop(all_right, all_right, np.zeros(n, int)).value == 0.0


def test_the_drop_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    n, truth, covered = 400, 0.02, 0
    for _ in range(1000):
        # Both right, lost, won, both wrong.
        kind = rng.choice(4, size=n, p=[0.86, 0.05, 0.03, 0.06])
        baseline, model = np.isin(kind, (0, 1)), np.isin(kind, (0, 2))
        drop = accuracy_drop(one_hot(model), one_hot(baseline), np.zeros(n, int))
        covered += drop.low <= truth <= drop.high
    assert 0.93 <= covered / 1000 <= 0.97
