"""Models: uploaded, refused, listed, waited for."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.db import models
from tests.onnx_files import conv_net
from tests.service_tests.api_world import (
    SURVEY,
    World,
    assert_problem,
    spec_part,
    world,
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


def safetensors(values: int = 4, *, missing: int = 0) -> bytes:
    """Return one float32 tensor as a safetensors file, whose last bytes may be missing."""
    end = 4 * values
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, end]}})
    body = struct.pack("<Q", len(header)) + header.encode() + bytes(end)
    return body[: len(body) - missing]


def declared(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": "resnet20",
        "architecture": {"name": "cifar_resnet20"},
        "format": "safetensors",
        "input_shape": [3, 32, 32],
        "preprocessing": {"layout": "NCHW", "scale": 255, "mean": [0.5], "std": [0.25]},
        "num_classes": 10,
    }
    return spec | changes


def post(api: World, spec: dict[str, Any], data: bytes | None, **headers: str) -> httpx.Response:
    files = None if data is None else {"weights": ("w.bin", data)}
    answer: httpx.Response = api.client.post(
        "/api/v1/models", data=spec_part(**spec), files=files, headers=headers
    )
    return answer


def test_a_model_is_accepted_and_stored(api: World) -> None:
    data = safetensors()
    answer = post(api, declared(), data)
    assert answer.status_code == 202
    found = answer.json()
    assert answer.headers["location"] == f"/api/v1/models/{found['id']}"
    assert found["state"] == "SCANNING"
    assert found["weights_sha256"] == hashlib.sha256(data).hexdigest()
    assert api.services.store.get(found["weights_sha256"]) == data
    assert not list(api.services.settings.incoming_dir.iterdir())
    assert api.client.get(answer.headers["location"]).json() == found


def test_the_spec_may_come_as_a_file(api: World) -> None:
    files = {
        "spec": ("model.json", json.dumps(declared()).encode(), "application/json"),
        "weights": ("w.safetensors", safetensors()),
    }
    assert api.client.post("/api/v1/models", files=files).status_code == 202


def torchscript() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("net/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("net/code/__torch__.py", "def forward(self): pass")
        archive.writestr("net/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "form", "word"),
    [
        (pickle.dumps({"w": [1.0]}, protocol=4), "safetensors", "pickle"),
        (pickle.dumps({"w": [1.0]}, protocol=2), "state_dict", "pickle"),
        (torchscript(), "state_dict", "TorchScript"),
        (safetensors(missing=3), "safetensors", ""),
        (safetensors()[:6], "safetensors", ""),
        (b"", "safetensors", "empty"),
        (b"<html>not found</html>", "safetensors", "HTML"),
    ],
    ids=["pickle", "pickled-dict", "torchscript", "truncated", "header", "empty", "page"],
)
def test_files_that_are_no_weights_are_refused(
    api: World, data: bytes, form: str, word: str
) -> None:
    before = api.client.get("/api/v1/models").json()["data"]
    document = assert_problem(post(api, declared(format=form), data), 422, "model-refused")
    assert word in document["detail"]
    assert api.client.get("/api/v1/models").json()["data"] == before
    assert not list(api.services.settings.incoming_dir.iterdir())


def test_an_unknown_architecture_names_the_closest(api: World) -> None:
    spec = declared(architecture={"name": "cifar_resnet65"})
    document = assert_problem(post(api, spec, safetensors()), 422, "model-refused")
    assert "cifar_resnet56" in document["detail"]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"architecture": {}}, "/spec/architecture"),
        ({"architecture": {"name": "a", "python": "b:c"}}, "/spec/architecture"),
        ({"input_shape": [3, 32]}, "/spec/input_shape/2"),
        ({"format": "tflite"}, "/spec/format"),
        ({"colour": "red"}, "/spec/colour"),
        ({"preprocessing": {"mean": [], "std": [1]}}, "/spec/preprocessing/mean"),
        ({"format": "python"}, "/spec/format"),
    ],
)
def test_specs_that_make_no_sense_are_refused(
    api: World, changes: dict[str, Any], pointer: str
) -> None:
    answer = post(api, declared(**changes), safetensors())
    assert_problem(answer, 422, "validation", pointer)


def test_shapes_and_preprocessing_must_agree(api: World) -> None:
    spec = declared(preprocessing={"mean": [0.1, 0.2], "std": [1.0]})
    assert_problem(post(api, spec, safetensors()), 422, "model-refused")
    spec = declared(preprocessing={"mean": [0.1], "std": [0.0]})
    assert_problem(post(api, spec, safetensors()), 422, "model-refused")
    assert_problem(post(api, declared(input_shape=[0, 1, 1]), safetensors()), 422, "model-refused")


def test_weights_are_required_where_the_builder_does_not_bring_them(api: World) -> None:
    assert_problem(post(api, declared(), None), 422, "validation", "/weights")


@pytest.mark.parametrize(
    "architecture", [{"python": "mine.nets:build"}, {"name": "mine.nets:build"}]
)
def test_users_code_needs_a_code_folder(
    api: World, tmp_path: Path, architecture: dict[str, str]
) -> None:
    spec = declared(architecture=architecture, format="python")
    assert_problem(post(api, spec, None), 403, "code-not-allowed", "/spec/architecture")
    with world(tmp_path / "open", code_dir=tmp_path) as trusting:
        answer = post(trusting, spec, None)
        assert answer.status_code == 202, answer.text
        assert answer.json()["format"] == "python"
        assert answer.json()["architecture"] == "mine.nets:build"
        assert trusting.client.get("/api/v1/system").json()["features"]["user_code"] is True


def test_a_python_name_must_be_plain(tmp_path: Path) -> None:
    with world(tmp_path, code_dir=tmp_path) as api:
        spec = declared(architecture={"python": "os.system"}, format="python")
        assert_problem(post(api, spec, None), 422, "validation", "/spec/architecture/python")
        spec = declared(architecture={"python": "a b:c"}, format="python")
        assert_problem(post(api, spec, None), 422, "model-refused")


def test_a_repeated_key_gets_the_first_answer(api: World) -> None:
    before = len(api.client.get("/api/v1/models").json()["data"])
    key = {"Idempotency-Key": "k-1"}
    first = post(api, declared(), safetensors(), **key)
    again = post(api, declared(), safetensors(), **key)
    assert again.status_code == 202
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(api.client.get("/api/v1/models").json()["data"]) == before + 1
    other = post(api, declared(name="other"), safetensors(), **key)
    assert_problem(other, 422, "idempotency-key-reused")
    other = post(api, declared(), safetensors(5), **key)
    assert_problem(other, 422, "idempotency-key-reused")


def test_pages_lead_through_all_models_once(api: World) -> None:
    older = [model["id"] for model in api.client.get("/api/v1/models").json()["data"]]
    made = [api.store_model(ready=False) for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = api.client.get(f"/api/v1/models?limit=2{cursor}").json()
        seen += [model["id"] for model in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == made[::-1] + older


def test_the_tag_changes_with_the_state(api: World) -> None:
    model_id = api.store_model(ready=False)
    first = api.client.get(f"/api/v1/models/{model_id}")
    tag = {"if-none-match": first.headers["etag"]}
    unchanged = api.client.get(f"/api/v1/models/{model_id}", headers=tag)
    assert unchanged.status_code == 304
    assert unchanged.content == b""
    with api.database.write() as session:
        models.set_ready(session, model_id, survey=SURVEY.to_json(), summary={"num_classes": 10})
    changed = api.client.get(f"/api/v1/models/{model_id}", headers=tag)
    assert changed.status_code == 200
    assert changed.json()["state"] == "READY"
    assert changed.json()["summary"] == {"num_classes": 10}


def test_waiting_ends_with_the_scan(api: World) -> None:
    model_id = api.store_model(ready=False)

    def scan() -> None:
        with api.database.write() as session:
            models.set_rejected(session, model_id, {"title": "No", "detail": "key 'w' is missing"})

    timer = threading.Timer(0.3, scan)
    timer.start()
    answer = api.client.get(f"/api/v1/models/{model_id}", headers={"Prefer": "wait=20"})
    timer.join()
    assert answer.json()["state"] == "REJECTED"
    assert answer.json()["problem"]["detail"] == "key 'w' is missing"
    assert answer.headers["preference-applied"] == "wait=20"


def test_the_survey_names_what_can_be_frozen(api: World) -> None:
    model_id = api.store_model()
    found = api.client.get(f"/api/v1/models/{model_id}/survey").json()
    assert [site["name"] for site in found["sites"]] == ["first", "second", "head", "model"]
    assert found["sites"][2]["frozen"] == "its channels are the classes"
    waiting = api.store_model(ready=False)
    answer = api.client.get(f"/api/v1/models/{waiting}/survey")
    document = assert_problem(answer, 409, "not-ready")
    assert document["retryable"] is True
    assert answer.headers["retry-after"] == "2"


def test_an_onnx_file_says_its_shape(api: World) -> None:
    spec = declared(architecture={"name": "onnx"}, format="onnx")
    del spec["input_shape"]
    data = conv_net()
    answer = post(api, spec, data)
    assert answer.status_code == 202, answer.text
    found = answer.json()
    assert (found["format"], found["architecture"]) == ("onnx", "onnx")
    assert found["input_shape"] == [3, 8, 8]
    assert post(api, spec | {"format": None}, data).json()["format"] == "onnx"
    assert_problem(post(api, spec, data[:-20]), 422, "model-refused")
    assert_problem(post(api, spec, safetensors()), 422, "model-refused")


def test_a_shape_is_required_of_other_formats(api: World) -> None:
    spec = declared()
    del spec["input_shape"]
    answer = post(api, spec, safetensors())
    assert answer.status_code == 422
    assert "/spec/input_shape" in answer.text
