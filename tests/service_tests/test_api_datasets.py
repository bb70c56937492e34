"""Datasets: uploaded, refused, named."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service_tests.api_world import World, assert_problem, npz, spec_part, world

ROWS = 120


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


def pixels(rng: np.random.Generator | None = None) -> Any:
    rng = rng or np.random.default_rng(0)
    return rng.integers(0, 256, size=(ROWS, 8, 8, 3), dtype=np.uint8)


def labels() -> Any:
    return np.arange(ROWS) % 10


def post(api: World, data: bytes | None, **spec: Any) -> httpx.Response:
    given = {"name": "pixels", "format": "npz", **spec}
    files = None if data is None else {"data": ("data.bin", data)}
    answer: httpx.Response = api.client.post(
        "/api/v1/datasets", data=spec_part(**given), files=files
    )
    return answer


def test_arrays_are_accepted_and_stored(api: World) -> None:
    data = npz(x=pixels(), y=labels())
    answer = post(api, data, num_classes=10, splits={"seed": 3})
    assert answer.status_code == 202, answer.text
    found = answer.json()
    assert answer.headers["location"] == f"/api/v1/datasets/{found['id']}"
    assert found["state"] == "SCANNING"
    assert found["data_sha256"] == hashlib.sha256(data).hexdigest()
    assert found["splits"]["seed"] == 3
    assert api.services.store.get(found["data_sha256"]) == data
    assert api.client.get(answer.headers["location"]).json() == found
    assert found in api.client.get("/api/v1/datasets").json()["data"]


def with_nan() -> bytes:
    x = pixels().astype(np.float32) / 255
    x[7, 0, 0, 0] = np.nan
    return npz(x=x, y=labels())


def truncated() -> bytes:
    return npz(x=pixels(), y=labels())[:-400]


def objects() -> bytes:
    return npz(x=pixels(), y=np.array([{"a": 1}] * ROWS, dtype=object))


@pytest.mark.parametrize(
    ("data", "spec", "word"),
    [
        (npz(x=pixels(), y=labels() + 1), {"num_classes": 10}, "10"),
        (npz(x=pixels(), y=labels() - 1), {}, "-1"),
        (npz(x=pixels(), y=labels()[:-1]), {}, "rows"),
        (with_nan(), {}, "7"),
        (truncated(), {}, ""),
        (objects(), {}, "Python objects"),
        (npz(y=labels()), {}, "'x'"),
        (b"PK no archive", {}, ""),
        (b"", {}, "empty"),
        (npz(x=pixels()[:, :, :, 0][:, :, :, None, None]), {}, "shape"),
        (npz(x=pixels()), {"input_shape": [3, 32, 32]}, "input_shape"),
    ],
    ids=[
        "label-too-large",
        "label-negative",
        "label-missing",
        "nan",
        "truncated",
        "objects",
        "no-images",
        "no-archive",
        "empty",
        "axes",
        "other-shape",
    ],
)
def test_arrays_that_make_no_sense_are_refused(
    api: World, data: bytes, spec: dict[str, Any], word: str
) -> None:
    before = api.client.get("/api/v1/datasets").json()["data"]
    document = assert_problem(post(api, data, **spec), 422, "data-refused")
    assert word in document["detail"]
    assert api.client.get("/api/v1/datasets").json()["data"] == before
    assert not list(api.services.settings.incoming_dir.iterdir())


def folders(*extra: str) -> bytes:
    out = io.BytesIO()
    picture = io.BytesIO()
    Image.fromarray(pixels()[0]).save(picture, "png")
    with zipfile.ZipFile(out, "w") as archive:
        for index in range(ROWS):
            archive.writestr(f"class{index % 2}/{index}.png", picture.getvalue())
        for name in extra:
            archive.writestr(name, picture.getvalue())
    return out.getvalue()


def test_folders_of_pictures_are_accepted(api: World) -> None:
    assert post(api, folders(), format="folders").status_code == 202


@pytest.mark.parametrize("name", ["../escape.png", "class0/../../x.png", "/etc/x.png"])
def test_archives_that_leave_their_folder_are_refused(api: World, name: str) -> None:
    document = assert_problem(post(api, folders(name), format="folders"), 422, "data-refused")
    assert name in document["detail"]


def test_built_in_names(api: World) -> None:
    answer = post(api, None, name="digits", format="builtin")
    assert answer.status_code == 202
    assert answer.json()["source"] == "digits"
    answer = post(api, None, name="mine", source="digits", format="builtin")
    assert answer.json()["source"] == "digits"
    document = assert_problem(post(api, None, name="x", format="builtin"), 422, "data-refused")
    assert "digits" in document["detail"]
    answer = post(api, b"x", name="digits", format="builtin")
    assert_problem(answer, 422, "validation", "/data")


def test_files_are_required_and_sources_are_for_names(api: World) -> None:
    assert_problem(post(api, None), 422, "validation", "/data")
    assert_problem(post(api, b"x", source="digits"), 422, "validation", "/spec/source")


@pytest.mark.parametrize(
    ("splits", "pointer"),
    [
        ({"train": 0.9}, "/spec/splits"),
        ({"test": 0.0}, "/spec/splits/test"),
        ({"train": -0.1}, "/spec/splits/train"),
        ({"val": 0.1}, "/spec/splits/val"),
    ],
)
def test_splits_that_make_no_sense_are_refused(
    api: World, splits: dict[str, float], pointer: str
) -> None:
    answer = post(api, npz(x=pixels()), splits=splits)
    assert_problem(answer, 422, "validation", pointer)


def test_paths_must_lie_in_an_opened_folder(tmp_path: Path) -> None:
    opened = tmp_path / "data"
    opened.mkdir()
    (opened / "x.npz").write_bytes(npz(x=pixels()))
    (opened / "link").symlink_to("/etc")
    with world(tmp_path / "api", data_roots=(opened,)) as api:
        answer = post(api, None, format="path", source=str(opened / "x.npz"))
        assert answer.status_code == 202, answer.text
        assert answer.json()["source"] == str(opened / "x.npz")
        for outside in ("/etc/passwd", str(opened / ".." / "x"), str(opened / "link" / "passwd")):
            answer = post(api, None, format="path", source=outside)
            assert_problem(answer, 403, "path-not-allowed", "/spec/source")
