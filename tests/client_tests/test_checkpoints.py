"""Downloads are checked, archives stay in their folder."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from paretopress import checkpoints
from paretopress.checkpoints import download, unpack
from paretopress.errors import DownloadDamaged, ServerUnreachable
from paretopress.wire import Wire

CONTENT = bytes(range(256)) * 40


def zip_file(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


class Store:
    """Serves one artifact by range; the first answers break after `cut` bytes."""

    def __init__(self, *, breaks: int = 0, cut: int = 1000, sha256: str | None = None) -> None:
        self.breaks = breaks
        self.cut = cut
        self.sha256 = sha256 or hashlib.sha256(CONTENT).hexdigest()
        self.ranges: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/content"):
            size = {"id": "art_1", "sha256": self.sha256, "size_bytes": len(CONTENT)}
            return httpx.Response(200, content=json.dumps(size).encode())
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        status = 206 if wanted else 200
        if self.breaks:
            self.breaks -= 1
            return httpx.Response(status, stream=Cut(CONTENT[start : start + self.cut]))
        return httpx.Response(status, content=CONTENT[start:])

    def wire(self) -> Wire:
        return Wire("http://server", transport=httpx.MockTransport(self), sleep=lambda _: None)


class Cut(httpx.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content
        raise httpx.ReadError("scripted break")


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = Store(breaks=2)
    target = tmp_path / "file"
    info = download(store.wire(), "art_1", target)
    assert target.read_bytes() == CONTENT
    assert store.ranges == [None, "bytes=1000-", "bytes=2000-"]
    assert info.size_bytes == len(CONTENT)


def test_a_break_after_the_last_byte_asks_for_nothing(tmp_path: Path) -> None:
    store = Store(breaks=1, cut=len(CONTENT))
    download(store.wire(), "art_1", tmp_path / "file")
    assert store.ranges == [None]


def test_a_connection_that_keeps_breaking_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable):
        download(Store(breaks=99).wire(), "art_1", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_wrong_digest_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DownloadDamaged, match="SHA-256"):
        download(Store(sha256="0" * 64).wire(), "art_1", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_unpacked(tmp_path: Path) -> None:
    entries = {"model.py": b"x = 1\n", "parts/model.onnx": CONTENT}
    files = unpack(zip_file(tmp_path / "a.zip", entries), tmp_path / "out")
    assert [f.relative_to(tmp_path / "out").as_posix() for f in files] == sorted(entries)
    assert (tmp_path / "out/parts/model.onnx").read_bytes() == CONTENT
    assert stat.S_IMODE((tmp_path / "out/model.py").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:evil", "a/./../../b"]
)
def test_names_outside_the_folder_are_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    archive = zip_file(tmp_path / "a.zip", {"fine": b"1", name: b"2"})
    with pytest.raises(DownloadDamaged, match="outside its folder"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DownloadDamaged, match="not a plain file"):
        unpack(path, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.py", "a")
        archive.writestr("model.py", "b")
    with pytest.raises(DownloadDamaged, match="twice"):
        unpack(path, tmp_path / "out")


def test_an_archive_that_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MAX_UNPACKED_BYTES", 100)
    with pytest.raises(DownloadDamaged, match="101 bytes; 100 allowed"):
        unpack(zip_file(tmp_path / "a.zip", {"a": bytes(101)}), tmp_path / "out")


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", CONTENT)
    path = tmp_path / "a.zip"
    path.write_bytes(buffer.getvalue().replace(CONTENT[:50], bytes(50), 1))
    with pytest.raises(DownloadDamaged, match="damaged"):
        unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
