"""Parts are fixed by seed, disjoint, complete and stratified."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.errors import DataRefused
from workers.datasets.dataset import PARTS, Dataset
from workers.datasets.split import CALIBRATION, SEARCH, TEST, TRAIN, assign_parts
from workers.job import Splits


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(100, 600), classes=st.integers(1, 12), seed=st.integers(0, 1000))
def test_stratified_within_a_row(rows: int, classes: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    splits = Splits(seed=seed)
    parts = assign_parts(rows, labels, None, splits)
    assert np.array_equal(parts, assign_parts(rows, labels, None, splits))
    shares = np.array([splits.train, splits.calibration, splits.search, splits.test])
    for group in (np.ones(rows, bool), *(labels == label for label in range(classes))):
        counts = np.bincount(parts[group], minlength=4)
        assert np.abs(counts - shares * group.sum()).max() <= 2


def test_other_seed_other_rows() -> None:
    first = assign_parts(200, None, None, Splits(seed=0))
    second = assign_parts(200, None, None, Splits(seed=1))
    assert not np.array_equal(first, second)


def test_declared_split_is_kept() -> None:
    declared = (np.arange(400) % 4).astype(np.int8)
    assert np.array_equal(assign_parts(400, None, declared, Splits()), declared)


def test_calibration_comes_out_of_training() -> None:
    declared = np.repeat([TRAIN, SEARCH, TEST], [700, 50, 50]).astype(np.int8)
    labels = np.arange(800) % 7
    parts = assign_parts(800, labels, declared, Splits())
    moved = parts != declared
    assert (parts[moved] == CALIBRATION).all()
    assert (declared[moved] == TRAIN).all()
    # 0.1 of calibration beside 0.6 of training: a seventh.
    assert moved.sum() == 100
    assert np.bincount(labels[moved]).max() - np.bincount(labels[moved]).min() <= 1
    assert (declared == np.repeat([TRAIN, SEARCH, TEST], [700, 50, 50])).all()


def test_parts_of_a_dataset() -> None:
    split = np.array([0, 0, 1, 3, 3, 2, 1, 2], dtype=np.int8)
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)
    data = Dataset(images=images, labels=np.arange(8), split=split, num_classes=8)
    seen = []
    for name in PARTS:
        part, labels = data.part(name)
        assert labels is not None
        assert part.flatten().tolist() == labels.tolist() == data.rows(name).tolist()
        seen += labels.tolist()
    assert sorted(seen) == list(range(8))
    assert np.shares_memory(data.part("train")[0], images)
    assert data.counts() == {"train": 2, "calibration": 2, "search": 2, "test": 2}
    with pytest.raises(DataRefused, match="No part is named 'dev'"):
        data.part("dev")  # type: ignore[arg-type]
