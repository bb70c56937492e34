"""Content-addressed blobs: the port, and the store in a folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from compression.artifact import Digest
from workers.errors import BlobMissing

CHUNK_BYTES = 1 << 20


class ArtifactStore(Protocol):
    """Immutable blobs named by their SHA-256.

    Anyone may write at any time: a blob appears whole or not at all, and writing one that exists
    changes nothing. Nothing is ever overwritten. `tests/contracts/store.py` holds the laws.
    """

    def put(self, data: bytes) -> Digest:
        """Store bytes and return their name."""
        ...

    def put_file(self, path: Path) -> Digest:
        """Store a file's content and return its name; the file stays."""
        ...

    def get(self, digest: Digest) -> bytes:
        """Return a blob whole.

        Raises:
            BlobMissing: There is none of this name.
        """
        ...

    def size_bytes(self, digest: Digest) -> int:
        """Return a blob's size.

        Raises:
            BlobMissing: There is none of this name.
        """
        ...

    def stream(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of [start, end), in chunks; `end` None is the blob's end.

        Raises:
            BlobMissing: There is none of this name; raised before the first chunk.
        """
        ...


class FolderStore:
    """Blobs as files `ab/cdef...` under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, digest: Digest) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BlobMissing(digest)
        return self.root / digest[:2] / digest[2:]

    def put(self, data: bytes) -> Digest:
        """See `ArtifactStore`."""
        digest = Digest(hashlib.sha256(data).hexdigest())
        target = self._path(digest)
        if target.exists():
            return digest
        target.parent.mkdir(parents=True, exist_ok=True)
        # A rename within one folder is atomic: kill -9 leaves a stray temporary, never half a blob.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(target)
        return digest

    def put_file(self, path: Path) -> Digest:
        """See `ArtifactStore`."""
        self.root.mkdir(parents=True, exist_ok=True)
        hasher = hashlib.sha256()
        handle, name = tempfile.mkstemp(dir=self.root, prefix=".tmp-")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream, path.open("rb") as source:
                for chunk in _chunks(source, None):
                    hasher.update(chunk)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            digest = Digest(hasher.hexdigest())
            target = self._path(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def get(self, digest: Digest) -> bytes:
        """See `ArtifactStore`."""
        try:
            return self._path(digest).read_bytes()
        except FileNotFoundError:
            raise BlobMissing(digest) from None

    def size_bytes(self, digest: Digest) -> int:
        """See `ArtifactStore`."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise BlobMissing(digest) from None

    def stream(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `ArtifactStore`."""
        try:
            source = self._path(digest).open("rb")
        except FileNotFoundError:
            raise BlobMissing(digest) from None
        source.seek(start)
        return _closing_chunks(source, None if end is None else end - start)


def _closing_chunks(source: BinaryIO, limit: int | None) -> Iterator[bytes]:
    with source:
        yield from _chunks(source, limit)


def _chunks(source: BinaryIO, limit: int | None) -> Iterator[bytes]:
    while limit is None or limit > 0:
        chunk = source.read(CHUNK_BYTES if limit is None else min(CHUNK_BYTES, limit))
        if not chunk:
            return
        if limit is not None:
            limit -= len(chunk)
        yield chunk
