"""Archives of files from strangers: names, kinds and sizes are checked before any is read."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from compression.errors import DataRefused

MAX_ENTRIES = 5_000_000
MAX_UNPACKED_BYTES = 64 << 30
MAX_EXPANSION = 100
"""Unpacked over packed size. Pictures are compressed already and expand hardly at all."""

SMALL_BYTES = 1 << 20
"""Below this size a great expansion is harmless: blank bitmaps and text have it."""

JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What operating systems leave in archives; hidden files are skipped as well."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One regular file.

    Attributes:
        name: Path inside, with forward slashes, relative and without `..`.
        size_bytes: Unpacked.
        read: Returns the content; read entries in their order, tar archives are slow otherwise.
    """

    name: str
    size_bytes: int
    read: Callable[[], bytes]


@contextlib.contextmanager
def open_archive(stream: BinaryIO) -> Iterator[list[Entry]]:
    """Give the files of a zip or tar archive (plain, gzip, bzip2 or xz).

    Raises:
        DataRefused: It is neither, is damaged, or an entry has an absolute name, leaves the
            archive by `..`, is a link or a device, is encrypted, or expands beyond the limits.
    """
    try:
        if zipfile.is_zipfile(stream):
            stream.seek(0)
            with zipfile.ZipFile(stream) as packed:
                yield _zip_entries(packed, _size(stream))
        else:
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:*") as tar:
                yield _tar_entries(tar, _size(stream))
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        OSError,
    ) as error:
        raise DataRefused(
            f"The file is no zip or tar archive, or is truncated or damaged: {error}"
        ) from error


def folder_entries(root: Path) -> list[Entry]:
    """Return the files under a folder, sorted by name; links are refused as in archives.

    Raises:
        DataRefused: There is a link.
    """
    entries = []
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            raise DataRefused(f"{path} is a link; links are not followed")
        name = path.relative_to(root).as_posix()
        if path.is_file() and not _is_junk(name):
            entries.append(Entry(name, path.stat().st_size, path.read_bytes))
    return entries


def check_entry_name(name: str) -> None:
    """Require a relative name that stays inside.

    Raises:
        DataRefused: Naming the entry.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts:
        raise DataRefused(f"Archive entry {name!r} contains '..'; names must stay inside")
    if not parts or name.startswith(("/", "\\")) or ":" in parts[0] or "\0" in name:
        raise DataRefused(f"Archive entry {name!r} is not a plain relative name")


def _zip_entries(packed: zipfile.ZipFile, archive_bytes: int) -> list[Entry]:
    entries: list[Entry] = []
    limits = _Limits(archive_bytes)
    for info in packed.infolist():
        check_entry_name(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise DataRefused(f"Archive entry {info.filename!r} is a link or a device, not a file")
        if info.flag_bits & 1:
            raise DataRefused(f"Archive entry {info.filename!r} is encrypted")
        limits.count(info.filename, info.file_size, info.compress_size)
        if not info.is_dir() and not _is_junk(info.filename):
            entries.append(Entry(info.filename, info.file_size, _zip_reader(packed, info)))
    return entries


def _tar_entries(tar: tarfile.TarFile, archive_bytes: int) -> list[Entry]:
    entries: list[Entry] = []
    limits = _Limits(archive_bytes)
    # Entry by entry: a bomb is left as soon as its headers promise too much.
    for info in tar:
        check_entry_name(info.name)
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise DataRefused(f"Archive entry {info.name!r} is a link or a device, not a file")
        limits.count(info.name, info.size, None)
        if info.isreg() and not _is_junk(info.name):
            entries.append(Entry(info.name, info.size, _tar_reader(tar, info)))
    return entries


class _Limits:
    """Sums over the entries seen so far."""

    def __init__(self, archive_bytes: int) -> None:
        self.archive_bytes = archive_bytes
        self.entries = 0
        self.unpacked_bytes = 0
        self.packed_bytes = 0

    def count(self, name: str, unpacked_bytes: int, packed_bytes: int | None) -> None:
        self.entries += 1
        self.unpacked_bytes += unpacked_bytes
        self.packed_bytes += packed_bytes or 0
        if self.entries > MAX_ENTRIES:
            raise DataRefused(f"The archive has more than {MAX_ENTRIES} entries")
        if self.unpacked_bytes > MAX_UNPACKED_BYTES:
            raise DataRefused(f"The archive unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        if self.packed_bytes > self.archive_bytes:
            raise DataRefused(f"Archive entry {name!r} overlaps with others")
        if packed_bytes is not None:
            _check_expansion(f"Archive entry {name!r}", unpacked_bytes, packed_bytes)
        else:
            _check_expansion("The archive", self.unpacked_bytes, self.archive_bytes)


def _check_expansion(what: str, unpacked_bytes: int, packed_bytes: int) -> None:
    if unpacked_bytes > max(SMALL_BYTES, MAX_EXPANSION * packed_bytes):
        raise DataRefused(
            f"{what} unpacks from {packed_bytes} to {unpacked_bytes} bytes; "
            f"at most {MAX_EXPANSION} times are accepted"
        )


def _zip_reader(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    return lambda: packed.read(info)


def _tar_reader(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        member = tar.extractfile(info)
        if member is None:
            raise DataRefused(f"Archive entry {info.name!r} has no content")
        return member.read()

    return read


def _is_junk(name: str) -> bool:
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    return any(part in JUNK or part.startswith(".") for part in parts)


def _size(stream: BinaryIO) -> int:
    place = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(place)
    return size
