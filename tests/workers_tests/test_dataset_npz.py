"""Array files: what is read, and what is refused with the row, the value and the limit."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compression.errors import DataRefused
from workers.datasets.check import check_dataset
from workers.datasets.load import describe_dataset, load_dataset
from workers.job import DatasetArtifact, Splits
from workers.store import FolderStore

ROWS = 200


def pixels(rows: int = ROWS, shape: tuple[int, ...] = (5, 6, 3)) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (rows, *shape)).astype(np.uint8)


def labels(rows: int = ROWS) -> NDArray[np.int64]:
    return np.arange(rows) % 10


def packed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def registered(store: FolderStore, data: bytes, **fields: Any) -> DatasetArtifact:
    return DatasetArtifact(data=store.put(data), format="npz", **fields)


def check(tmp_path: Path, data: bytes, *arguments: Any, **options: Any) -> None:
    path = tmp_path / "upload"
    path.write_bytes(data)
    artifact = DatasetArtifact(data=None, format="npz")
    check_dataset(artifact, path, *arguments, **options)


def test_layouts(store: FolderStore) -> None:
    x = pixels()
    wide = registered(store, packed(x=x, y=labels()))
    first = registered(store, packed(x=x.transpose(0, 3, 1, 2), y=labels()))
    for artifact, layout in ((wide, "NHWC"), (wide, None), (first, "NCHW"), (first, None)):
        data = load_dataset(artifact, store, layout=layout)  # type: ignore[arg-type]
        assert data.input_shape == (3, 5, 6)
        assert data.images.dtype == np.uint8
        assert np.array_equal(data.images, x.transpose(0, 3, 1, 2))
    grey = registered(store, packed(x=x[..., 0], y=labels()))
    assert load_dataset(grey, store, layout="NHWC").input_shape == (1, 5, 6)
    with pytest.raises(DataRefused, match=r"shape \[5, 6, 3\].*input_shape is \[3, 5, 6\]"):
        load_dataset(wide, store, layout="NCHW", input_shape=(3, 5, 6))


def test_ambiguous_layout_is_asked_for(store: FolderStore) -> None:
    artifact = registered(store, packed(x=pixels(shape=(3, 5, 3)), y=labels()))
    with pytest.raises(DataRefused, match=r"preprocessing\.layout"):
        load_dataset(artifact, store)
    assert load_dataset(artifact, store, layout="NHWC").input_shape == (3, 3, 5)
    assert describe_dataset(artifact, store)["image_shape"] is None


def test_description(store: FolderStore) -> None:
    data = packed(x=pixels(), y=labels(), names=np.array([f"class {i}" for i in range(12)]))
    assert describe_dataset(registered(store, data), store) == {
        "images": 200,
        "splits": {"train": 120, "calibration": 20, "search": 30, "test": 30},
        "labelled": True,
        "num_classes": 12,
        "class_names": [f"class {i}" for i in range(12)],
        "dtype": "uint8",
        "image_shape": [3, 5, 6],
    }
    unlabelled = describe_dataset(registered(store, packed(x=pixels())), store)
    assert (unlabelled["labelled"], unlabelled["num_classes"]) == (False, None)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint16"])
def test_number_types(store: FolderStore, dtype: str) -> None:
    x = pixels().astype(dtype)
    data = load_dataset(registered(store, packed(x=x, y=labels())), store)
    assert data.images.dtype == (np.float32 if dtype.startswith("f") else np.uint8)
    assert np.array_equal(data.images, x.transpose(0, 3, 1, 2))


def with_value(array: NDArray[Any], row: int, value: Any) -> NDArray[Any]:
    changed = array.copy()
    changed[row] = value
    return changed


FLOATS = pixels().astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": pixels(), "y": with_value(labels(), 37, 10)}, "row 37 has the label 10; .* 0 to 9"),
        ({"x": pixels(), "y": with_value(labels(), 5, -1)}, "row 5 has the label -1"),
        ({"x": pixels(), "y": labels().astype(np.float32)}, "'y' has type float32; .*integers"),
        ({"x": pixels(), "y": labels()[:-1]}, "'x' has 200 rows but 'y' has 199"),
        ({"x": pixels(), "y": labels()[:, None]}, r"'y' has shape \[200, 1\]"),
        ({"x": pixels(), "labels": labels()}, "arrays labels, x; required is 'x'"),
        ({"y": labels()}, "arrays y; required is 'x'"),
        ({"x": with_value(FLOATS, 17, np.nan)}, "row 17 has a pixel that is nan"),
        ({"x": with_value(FLOATS, 18, np.inf)}, "row 18 has a pixel that is inf"),
        ({"x": with_value(FLOATS.astype(np.float64), 3, 1e300)}, "row 3 has a pixel that is inf"),
        ({"x": with_value(pixels().astype(np.int64), 9, 256)}, "row 9 has a pixel outside 0"),
        ({"x": pixels().astype(bool)}, "'x' has type bool"),
        ({"x": pixels()[:, 0, 0]}, r"shape \[200, 3\]; images are"),
        ({"x": pixels()[:0]}, "holds no pixels"),
        ({"x": pixels(20)}, "part has \\d of 20 rows; at least 8"),
        (
            {"x": pixels(), "split": np.full(200, 2)},
            "calibration part has 0 of 200 rows .and there",
        ),
        ({"x": pixels(), "split": np.arange(200) % 3}, "test part has 0 of 200 rows"),
        ({"x": pixels(), "split": with_value(np.zeros(200, int), 8, 4)}, "row 8 has 4; .* 3 test"),
        ({"x": pixels(), "split": np.zeros(200)}, "'split' has type float64"),
        ({"x": np.array([{"a": 1}] * 200, dtype=object)}, "'x' holds Python objects"),
        ({"x": pixels(), "y": labels(), "names": np.arange(10)}, "'names' has type int64"),
    ],
)
def test_refused_arrays(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(DataRefused, match=words):
        check(tmp_path, packed(**arrays), 10)


def test_fewer_names_than_labels(store: FolderStore) -> None:
    artifact = registered(store, packed(x=pixels(), y=labels(), names=np.array(["a", "b"])))
    with pytest.raises(DataRefused, match="up to 9; there are 2 class names"):
        load_dataset(artifact, store)


def test_wrong_shape_for_the_model(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match=r"\[3, 5, 6\].*input_shape is \[3, 32, 32\]"):
        check(tmp_path, packed(x=pixels()), input_shape=(3, 32, 32))


def test_damaged_files(tmp_path: Path) -> None:
    good = packed(x=pixels(), y=labels())
    check(tmp_path, good)
    for data in (good[: len(good) // 2], good[:-30], b"hello", pickle.dumps({"x": 1})):
        with pytest.raises(DataRefused, match="truncated or damaged"):
            check(tmp_path, data)
    with pytest.raises(DataRefused, match="missing or empty"):
        check(tmp_path, b"")
    flipped = bytearray(good)
    flipped[400] ^= 0xFF
    with pytest.raises(DataRefused):
        check(tmp_path, bytes(flipped))


def test_headers_that_lie(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32, 3)}
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(100))
    with pytest.raises(DataRefused, match="3072000000000 bytes in memory"):
        check(tmp_path, buffer.getvalue())
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(DataRefused, match=r"'x\.npy' of the archive is not a NumPy array"):
        check(tmp_path, buffer.getvalue())


def test_impossible_shares(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(packed(x=pixels()))
    for splits, words in (
        (Splits(train=0.9), "sum to 1.3"),
        (Splits(train=0.75, test=0.0), "test is 0"),
        (Splits(train=1.1, calibration=-0.4), "lies in"),
    ):
        with pytest.raises(DataRefused, match=words):
            check_dataset(DatasetArtifact(data=None, format="npz", splits=splits), path)
