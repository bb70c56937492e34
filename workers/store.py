"""Content-addressed blobs: the port, and the store in a folder."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from compression.artifact import Digest
from workers.errors import BlobMissing

CHUNK_BYTES = 1 << 20

NAME = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})")
"""Where a blob lies below its store's root."""

TEMPORARY = ".tmp-"
"""How names of files begin that are being written."""


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """A blob as a listing shows it.

    Attributes:
        digest: Its name.
        size_bytes: Its size.
        put_at: When it was last put, aware; a put of what is there counts.
    """

    digest: Digest
    size_bytes: int
    put_at: datetime.datetime


class ArtifactStore(Protocol):
    """Immutable blobs named by their SHA-256.

    Anyone may write at any time: a blob appears whole or not at all, and writing one that exists
    changes nothing but the moment of its last put. Nothing is ever overwritten.
    `tests/contracts/store.py` holds the laws.
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

    def blobs(self) -> Iterator[Blob]:
        """Yield every blob, in any order; those that come or go meanwhile may be left out."""
        ...

    def remove(self, digest: Digest, before: datetime.datetime) -> bool:
        """Remove a blob that was last put before a moment; whether it was removed.

        A put that returns after this has begun leaves the blob in the store.
        """
        ...


class FolderStore:
    """Blobs as files `ab/cdef...` under one folder, whose modification time is their last put.

    A file is created by a hard link, which never replaces one, and removed under its exclusive
    lock. A put ends with the file's time renewed under its shared lock and the file still in its
    place: whichever comes first, the other sees it. The kernel frees locks of killed processes.
    """

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
        while not _renewed(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            # kill -9 leaves a stray temporary, never half a blob.
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=TEMPORARY)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            _place(Path(name), target)
        return digest

    def put_file(self, path: Path) -> Digest:
        """See `ArtifactStore`."""
        with path.open("rb") as source:
            digest = Digest(hashlib.file_digest(source, "sha256").hexdigest())
        target = self._path(digest)
        while not _renewed(target):
            digest, temporary = self._copied(path)  # It may have changed meanwhile.
            target = self._path(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(temporary, target)
        return digest

    def _copied(self, path: Path) -> tuple[Digest, Path]:
        """Copy a file into the store's folder; return its digest and the copy."""
        self.root.mkdir(parents=True, exist_ok=True)
        hasher = hashlib.sha256()
        handle, name = tempfile.mkstemp(dir=self.root, prefix=TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as stream, path.open("rb") as source:
                for chunk in _chunks(source, None):
                    hasher.update(chunk)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Digest(hasher.hexdigest()), Path(name)

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

    def blobs(self) -> Iterator[Blob]:
        """See `ArtifactStore`."""
        for path in self.root.glob("??/*"):
            found = NAME.fullmatch(path.relative_to(self.root).as_posix())
            if found is None:
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            yield Blob(Digest(found[1] + found[2]), stat.st_size, _moment(stat.st_mtime))

    def remove(self, digest: Digest, before: datetime.datetime) -> bool:
        """See `ArtifactStore`."""
        target = self._path(digest)
        try:
            stream = target.open("rb")
        except FileNotFoundError:
            return False
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_in_place(stream, target):
                return False
            if _moment(os.fstat(stream.fileno()).st_mtime) >= before:
                return False
            target.unlink()
            return True


def _renewed(target: Path) -> bool:
    """Make a blob's file as young as if it were written now; False where there is none."""
    try:
        stream = target.open("rb")
    except FileNotFoundError:
        return False
    with stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        os.utime(stream.fileno())
        return _is_in_place(stream, target)


def _is_in_place(stream: BinaryIO, target: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(target.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _place(temporary: Path, target: Path) -> None:
    """Give a whole file a blob's name, unless another one has it."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        pass
    except OSError:
        # Without hard links: a rename, which may replace a file that came in this moment. That
        # is as young, so nobody is about to remove it.
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


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
