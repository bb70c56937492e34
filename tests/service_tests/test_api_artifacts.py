"""Files: what they are, their bytes by range, their tags."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from compression.artifact import Digest
from service.api.artifacts import Span, parse_range
from service.db import artifacts
from service.errors import RangeUnsatisfiable
from tests.service_tests.api_world import World, assert_problem, world

DATA = bytes(range(256)) * 20


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


@pytest.fixture(scope="module")
def path(api: World) -> str:
    digest = api.services.store.put(DATA)
    with api.database.write() as session:
        stored = artifacts.register(session, digest, "onnx", file_name='mo"d\r\nel ü.onnx')
    return f"/api/v1/artifacts/{stored.id}"


def test_what_a_file_is(api: World, path: str) -> None:
    found = api.client.get(path).json()
    assert found["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert found["size_bytes"] == len(DATA)
    assert found["role"] == "onnx"
    assert found["links"]["content"] == f"{path}/content"


def test_the_whole_file(api: World, path: str) -> None:
    answer = api.client.get(f"{path}/content")
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    disposition = answer.headers["content-disposition"]
    assert disposition == "attachment; filename*=UTF-8''mo%22d%0D%0Ael%20%C3%BC.onnx"
    head = api.client.head(f"{path}/content")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=5000-", 5000, 5120),
        ("bytes=5100-9999", 5100, 5120),
        ("bytes=-20", 5100, 5120),
        ("bytes=-9999", 0, 5120),
    ],
)
def test_a_range(api: World, path: str, header: str, start: int, end: int) -> None:
    answer = api.client.get(f"{path}/content", headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == DATA[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("header", ["bytes=5120-", "bytes=9999-10000", "bytes=-0"])
def test_a_range_outside_is_refused(api: World, path: str, header: str) -> None:
    answer = api.client.get(f"{path}/content", headers={"Range": header})
    assert_problem(answer, 416, "range-unsatisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "items=0-1", "bytes=9-3", "bytes=-", "x"])
def test_what_is_no_single_range_gets_the_whole(api: World, path: str, header: str) -> None:
    answer = api.client.get(f"{path}/content", headers={"Range": header})
    assert answer.status_code == 200
    assert answer.content == DATA


def test_tags_spare_bytes(api: World, path: str) -> None:
    etag = api.client.get(f"{path}/content").headers["etag"]
    answer = api.client.get(f"{path}/content", headers={"if-none-match": f'"x", {etag}'})
    assert answer.status_code == 304
    same = {"Range": "bytes=0-9", "If-Range": etag}
    assert api.client.get(f"{path}/content", headers=same).status_code == 206
    other = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert api.client.get(f"{path}/content", headers=other).content == DATA


def test_content_that_is_gone_is_said_so(api: World) -> None:
    with api.database.write() as session:
        stored = artifacts.register(session, Digest("e" * 64), "report")
    answer = api.client.get(f"/api/v1/artifacts/{stored.id}/content")
    assert_problem(answer, 410, "content-missing")


def test_ranges_of_an_empty_file() -> None:
    assert parse_range("bytes=0-0", 1) == Span(0, 1)
    with pytest.raises(RangeUnsatisfiable):
        parse_range("bytes=0-", 0)
