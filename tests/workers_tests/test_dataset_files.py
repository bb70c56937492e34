"""Class folders in archives, Parquet tables, built-in names and operator paths."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from compression.errors import DataRefused
from workers.datasets.check import check_dataset
from workers.datasets.load import describe_dataset, load_dataset
from workers.job import DatasetArtifact, DatasetFormat
from workers.store import FolderStore

CLASSES = ("ant", "bee")


def picture(value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(per_class: int = 60) -> dict[str, bytes]:
    names = {}
    for label, name in enumerate(CLASSES):
        for index in range(per_class):
            names[f"{name}/{index:03}.png"] = picture(100 * label + index)
    return names


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def registered(
    store: FolderStore, data: bytes, format_: DatasetFormat = "folders"
) -> DatasetArtifact:
    return DatasetArtifact(data=store.put(data), format=format_)


def check(tmp_path: Path, data: bytes, format_: DatasetFormat = "folders") -> None:
    path = tmp_path / "upload"
    path.write_bytes(data)
    check_dataset(DatasetArtifact(data=None, format=format_), path)


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: tarred(files, "w")])
@pytest.mark.parametrize("outer", ["", "my data/", "./"])
def test_class_folders(
    store: FolderStore,
    tmp_path: Path,
    pack: Callable[[dict[str, bytes]], bytes],
    outer: str,
) -> None:
    junk = {"__MACOSX/ant/._1.png": b"x", f"{outer}ant/.DS_Store": b"x"}
    files = {outer + name: data for name, data in pictures().items()}
    data = pack({**junk, **files})
    check(tmp_path, data)
    dataset = load_dataset(registered(store, data), store)
    assert dataset.names == CLASSES
    assert dataset.labels is not None
    assert dataset.input_shape == (3, 4, 6)
    assert dataset.images[:, 0, 0, 0].tolist() == [*range(60), *range(100, 160)]
    assert dataset.labels.tolist() == [0] * 60 + [1] * 60
    assert dataset.counts() == {"train": 72, "calibration": 12, "search": 18, "test": 18}


def test_pictures_are_scaled_to_the_model(store: FolderStore) -> None:
    files = {
        **pictures(),
        "ant/big.png": picture(7, (60, 40)),
        "bee/grey.png": picture(9, mode="L"),
    }
    artifact = registered(store, zipped(files))
    assert load_dataset(artifact, store, input_shape=(3, 8, 8)).input_shape == (3, 8, 8)
    assert load_dataset(artifact, store, input_shape=(1, 5, 4)).input_shape == (1, 5, 4)
    with pytest.raises(DataRefused, match=r"big\.png' has shape \[3, 40, 60\]"):
        load_dataset(artifact, store)
    described = describe_dataset(artifact, store)
    assert (described["images"], described["image_shape"]) == (122, None)


def test_declared_by_folder(store: FolderStore) -> None:
    files = {
        f"{part}/{name}": data
        for part in ("train", "val", "test")
        for name, data in pictures(40).items()
    }
    dataset = load_dataset(registered(store, zipped(files)), store)
    counts = dataset.counts()
    assert (counts["search"], counts["test"]) == (80, 80)
    assert counts["train"] + counts["calibration"] == 80


def zip_with(name: str, *, mode: int = 0o100644, data: bytes = b"x") -> bytes:
    buffer = io.BytesIO(zipped(pictures()))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return buffer.getvalue()


def tar_with(info: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(info)
    return buffer.getvalue()


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zip_with("ant/../../evil.png"), "contains '..'"),
        (lambda: zip_with("..\\evil.png"), "contains '..'"),
        (lambda: zip_with("/etc/evil.png"), "not a plain relative name"),
        (lambda: zip_with("C:/evil.png"), "not a plain relative name"),
        (lambda: zip_with("ant/link.png", mode=0o120777), "is a link or a device"),
        (lambda: zip_with("ant/notes.txt"), "notes.txt' cannot be decoded"),
        (lambda: zip_with("notes.txt"), "does not lie in a class folder"),
        (lambda: tar_with(tarfile.TarInfo("../evil.png")), "contains '..'"),
        (lambda: tar_with(tarfile.TarInfo("/evil.png")), "not a plain relative name"),
        (lambda: tar_with(special("ant/a.png", tarfile.SYMTYPE)), "is a link or a device"),
        (lambda: tar_with(special("ant/a.png", tarfile.LNKTYPE)), "is a link or a device"),
        (lambda: tar_with(special("ant/a.png", tarfile.CHRTYPE)), "is a link or a device"),
        (lambda: zipped({"a/x": bytes(9 << 20)}, zipfile.ZIP_DEFLATED), "at most 100 times"),
        (lambda: tarred({"a/x": bytes(9 << 20)}), "at most 100 times"),
        (lambda: zipped({}), "holds no files"),
        (lambda: zipped({"ant/1.png": picture(1)}), "one class folder only, 'ant'"),
        (lambda: zipped(pictures())[:2000], "truncated or damaged"),
        (lambda: tarred(pictures())[:300], "truncated or damaged"),
        (lambda: b"hello", "no zip or tar archive"),
    ],
)
def test_refused_archives(
    store: FolderStore, tmp_path: Path, make: Callable[[], bytes], words: str
) -> None:
    data = make()
    with pytest.raises(DataRefused, match=words):
        load_dataset(registered(store, data), store)
    if "cannot be decoded" not in words:
        with pytest.raises(DataRefused, match=words):
            check(tmp_path, data)


@pytest.mark.parametrize(("side", "words"), [(10_000, "at most 64000000"), (100_000, "bomb")])
def test_a_picture_that_claims_gigabytes(store: FolderStore, side: int, words: str) -> None:
    bomb = f"P5 {side} {side} 255\n".encode()
    with pytest.raises(DataRefused, match=words):
        load_dataset(registered(store, zip_with("ant/bomb.pgm", data=bomb)), store)


def table(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    built = pyarrow.table(columns)
    pyarrow.parquet.write_table(built.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


PLAIN = [picture(value) for value in range(100)]


def test_parquet_as_hugging_face_writes_it(store: FolderStore, tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"]}}}}
    data = table(
        {
            "image": [{"bytes": data, "path": None} for data in PLAIN],
            "label": [index % 2 for index in range(100)],
        },
        {"huggingface": json.dumps(names)},
    )
    check(tmp_path, data, "parquet")
    dataset = load_dataset(registered(store, data, "parquet"), store)
    assert dataset.names == ("ant", "bee", "cat")
    assert dataset.num_classes == 3
    assert dataset.images[:, 0, 0, 0].tolist() == list(range(100))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1] * 50


def test_parquet_split_column(store: FolderStore) -> None:
    split = (["train"] * 70) + ["validation"] * 15 + ["test"] * 15
    data = table({"img": PLAIN, "split": split})
    dataset = load_dataset(registered(store, data, "parquet"), store, input_shape=(1, 4, 4))
    assert dataset.labels is None
    assert dataset.counts()["search"] == dataset.counts()["test"] == 15
    assert dataset.input_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (table({"pixels": PLAIN}), "columns pixels; one named image"),
        (table({"image": [*PLAIN[:9], None, *PLAIN[10:]]}), "row 9 holds no encoded picture"),
        (
            table({"image": [{"bytes": None, "path": "/etc/passwd"}] * 100}),
            "row 0 holds no encoded",
        ),
        (table({"image": [*PLAIN[:7], b"no picture", *PLAIN[8:]]}), "of row 7 cannot be decoded"),
        (table({"image": PLAIN, "label": [*range(99), -3]}), "row 99 has the label -3"),
        (table({"image": PLAIN, "label": [*range(99), None]}), "'label': row 99 is null"),
        (table({"image": PLAIN, "label": ["ant"] * 100}), "labels are integers"),
        (table({"image": PLAIN, "split": ["dev"] * 100}), "row 0 has -1; parts are"),
        (table({"image": PLAIN})[:-9], "truncated or damaged"),
    ],
)
def test_refused_tables(store: FolderStore, data: bytes, words: str) -> None:
    with pytest.raises(DataRefused, match=words):
        load_dataset(registered(store, data, "parquet"), store)


def test_truncated_table_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="begin and end"):
        check(tmp_path, table({"image": PLAIN})[:-9], "parquet")


def test_digits(store: FolderStore) -> None:
    artifact = DatasetArtifact(data=None, format="builtin", name="digits")
    check_dataset(artifact, None)
    dataset = load_dataset(artifact, store, layout="NCHW", input_shape=(1, 8, 8))
    assert len(dataset) == 1797
    assert dataset.images.dtype == np.uint8
    assert (dataset.images.min(), dataset.images.max()) == (0, 16)
    assert dataset.num_classes == 10
    assert sum(dataset.counts().values()) == 1797
    with pytest.raises(DataRefused, match=r"input_shape is \[3, 8, 8\]"):
        load_dataset(artifact, store, input_shape=(3, 8, 8))
    unknown = DatasetArtifact(data=None, format="builtin", name="imagenet")
    for refuse in (lambda: check_dataset(unknown, None), lambda: load_dataset(unknown, store)):
        with pytest.raises(DataRefused, match="No built-in dataset is named 'imagenet'"):
            refuse()


def test_operator_paths(store: FolderStore, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name, data in pictures().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    packed = tmp_path / "pictures.zip"
    packed.write_bytes(zipped(pictures()))
    found = [
        load_dataset(DatasetArtifact(data=None, format="path", name=str(path)), store)
        for path in (root, packed)
    ]
    assert np.array_equal(found[0].images, found[1].images)
    assert np.array_equal(found[0].split, found[1].split)
    (root / "ant" / "link.png").symlink_to("/etc/passwd")
    for path, words in (
        (root, "is a link"),
        (tmp_path / "none.npz", "does not exist"),
        (tmp_path / "none.csv", "ends in none of"),
    ):
        with pytest.raises(DataRefused, match=words):
            load_dataset(DatasetArtifact(data=None, format="path", name=str(path)), store)
