"""What every artifact store must hold."""

from __future__ import annotations

import datetime
import hashlib
import threading
from pathlib import Path

import pytest

from compression.artifact import Digest
from workers.errors import BlobMissing
from workers.store import CHUNK_BYTES, ArtifactStore

ABSENT = Digest("0" * 64)
HOUR = datetime.timedelta(hours=1)
BIG = bytes(range(256)) * (CHUNK_BYTES // 256) * 2 + b"the end"


class StoreContract:
    """Subclass it with a fixture `store`, empty at the start of each test.

    Attributes:
        rounds: Of removals beside puts.
    """

    rounds = 60

    def age(self, store: ArtifactStore, digest: Digest) -> None:
        """Make a blob look as if it were last put two hours ago."""
        raise NotImplementedError

    def test_a_blob_is_named_by_its_sha256_and_comes_back(self, store: ArtifactStore) -> None:
        digest = store.put(b"weights")
        assert digest == hashlib.sha256(b"weights").hexdigest()
        assert store.get(digest) == b"weights"
        assert store.size_bytes(digest) == 7

    def test_an_empty_blob_is_a_blob(self, store: ArtifactStore) -> None:
        digest = store.put(b"")
        assert store.get(digest) == b""
        assert store.size_bytes(digest) == 0
        assert list(store.stream(digest)) == []

    def test_putting_again_changes_nothing(self, store: ArtifactStore) -> None:
        assert store.put(b"same") == store.put(b"same")
        assert store.get(store.put(b"same")) == b"same"

    def test_a_file_gets_the_name_of_its_bytes_and_stays(
        self, store: ArtifactStore, tmp_path: Path
    ) -> None:
        path = tmp_path / "upload.bin"
        path.write_bytes(BIG)
        digest = store.put_file(path)
        assert digest == hashlib.sha256(BIG).hexdigest() == store.put(BIG)
        assert path.read_bytes() == BIG
        assert store.get(digest) == BIG
        assert store.put_file(path) == digest

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (0, None),
            (0, 1),
            (5, 5),
            (5, CHUNK_BYTES + 5),
            (CHUNK_BYTES, None),
            (len(BIG) - 3, None),
            (len(BIG) - 3, len(BIG) + 100),
            (len(BIG), None),
            (len(BIG) + 1, None),
        ],
    )
    def test_a_stream_yields_its_range(
        self, store: ArtifactStore, start: int, end: int | None
    ) -> None:
        chunks = list(store.stream(store.put(BIG), start, end))
        assert b"".join(chunks) == BIG[start:end]
        assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)

    def test_what_is_not_there_is_missing_at_once(self, store: ArtifactStore) -> None:
        store.put(b"something else")
        for look in (store.get, store.size_bytes, store.stream):
            with pytest.raises(BlobMissing, match=ABSENT):
                look(ABSENT)

    @pytest.mark.parametrize(
        "name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "g" * 64]
    )
    def test_a_name_that_is_no_digest_is_missing(self, store: ArtifactStore, name: str) -> None:
        with pytest.raises(BlobMissing):
            store.get(Digest(name))
        with pytest.raises(BlobMissing):
            store.size_bytes(Digest(name))
        with pytest.raises(BlobMissing):
            store.stream(Digest(name))

    def test_writers_of_the_same_blob_do_not_disturb_each_other(self, store: ArtifactStore) -> None:
        barrier, digests = threading.Barrier(6), []

        def put() -> None:
            barrier.wait()
            digest = store.put(BIG)
            digests.append((digest, store.get(digest) == BIG))

        threads = [threading.Thread(target=put) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert digests == [(Digest(hashlib.sha256(BIG).hexdigest()), True)] * 6

    def test_a_listing_shows_every_blob(self, store: ArtifactStore) -> None:
        assert list(store.blobs()) == []
        sizes = {store.put(data): len(data) for data in (b"one", b"three", b"")}
        now = datetime.datetime.now(datetime.UTC)
        listed = list(store.blobs())
        assert {blob.digest: blob.size_bytes for blob in listed} == sizes
        assert all(abs(blob.put_at - now) < HOUR for blob in listed)

    def test_what_is_older_than_a_moment_is_removed(
        self, store: ArtifactStore, tmp_path: Path
    ) -> None:
        now = datetime.datetime.now(datetime.UTC)
        digest, other = store.put(b"blob"), store.put(b"other")
        assert not store.remove(digest, now - HOUR)
        assert store.get(digest) == b"blob"
        assert store.remove(digest, now + HOUR)
        assert not store.remove(digest, now + HOUR)
        with pytest.raises(BlobMissing):
            store.get(digest)
        assert [blob.digest for blob in store.blobs()] == [other]
        assert store.put(b"blob") == digest
        assert store.get(digest) == b"blob"
        path = tmp_path / "file"
        path.write_bytes(b"blob")
        assert store.remove(digest, now + HOUR)
        assert store.put_file(path) == digest
        assert store.get(digest) == b"blob"

    def test_what_is_put_while_it_is_removed_is_there_afterwards(
        self, store: ArtifactStore
    ) -> None:
        digest = store.put(b"blob")
        before = datetime.datetime.now(datetime.UTC) - HOUR
        for _ in range(self.rounds):
            self.age(store, digest)
            barrier = threading.Barrier(3)

            def put(barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                store.put(b"blob")

            putters = [threading.Thread(target=put) for _ in range(2)]
            for putter in putters:
                putter.start()
            barrier.wait()
            store.remove(digest, before)
            for putter in putters:
                putter.join()
            assert store.get(digest) == b"blob"
        self.age(store, digest)
        assert store.remove(digest, before)
