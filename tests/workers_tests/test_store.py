"""The store in a folder, and stores from their URLs."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from compression.artifact import Digest
from tests.contracts.store import StoreContract
from workers.errors import BlobMissing
from workers.open_store import open_store
from workers.store import ArtifactStore, FolderStore

SIZE_BYTES = 64 << 20


class TestFolderStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FolderStore:
        return FolderStore(tmp_path / "store")

    def age(self, store: ArtifactStore, digest: Digest) -> None:
        assert isinstance(store, FolderStore)
        earlier = time.time() - 7200
        os.utime(store.root / digest[:2] / digest[2:], (earlier, earlier))


def put_big(folder: str) -> None:
    FolderStore(Path(folder)).put(b"x" * SIZE_BYTES)


def test_kill_9_of_a_writer_leaves_no_half_blob(tmp_path: Path) -> None:
    digest = Digest(hashlib.sha256(b"x" * SIZE_BYTES).hexdigest())
    writer = multiprocessing.get_context("spawn").Process(target=put_big, args=(str(tmp_path),))
    writer.start()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*/.tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    store = FolderStore(tmp_path)
    try:
        assert store.size_bytes(digest) == SIZE_BYTES
    except BlobMissing:
        assert store.put(b"x" * SIZE_BYTES) == digest
    assert store.size_bytes(digest) == SIZE_BYTES


def test_the_same_url_opens_the_same_store(tmp_path: Path) -> None:
    url = (tmp_path / "with space").as_uri()
    digest = open_store(url).put(b"blob")
    assert open_store(url).get(digest) == b"blob"
    assert FolderStore(tmp_path / "with space").get(digest) == b"blob"


@pytest.mark.parametrize(
    "url", ["", "/tmp/store", "file://host/folder", "http://host/x", "s3://", "s3://b/p?region_=x"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="Store URL"):
        open_store(url)
