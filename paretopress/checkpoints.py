"""Downloads that are what the server says they are, and archives that stay in their folder."""

from __future__ import annotations

import hashlib
import logging
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import httpx

from paretopress.errors import DownloadDamaged, ServerUnreachable
from paretopress.types import ArtifactInfo
from paretopress.wire import API, Wire

logger = logging.getLogger(__name__)

ATTEMPTS = 5
CHUNK_BYTES = 1 << 20
# A checkpoint holds about ten files. The bounds only stop an archive that was made to fill a disk.
MAX_FILES = 1_000
MAX_UNPACKED_BYTES = 64 << 30


def download(wire: Wire, artifact_id: str, target: Path) -> ArtifactInfo:
    """Fetch an artifact into a file, continuing after breaks, and check its digest.

    The file appears under its name only when it is complete and right.

    Args:
        wire: Connection.
        artifact_id: Which one.
        target: File to write; its folder exists.

    Returns:
        What the server knows of the artifact.

    Raises:
        DownloadDamaged: Size or SHA-256 differ from the server's.
        ApiProblem: The server refused.
        ServerUnreachable: The connection kept breaking.
    """
    info = ArtifactInfo.model_validate(wire.request("GET", f"{API}/artifacts/{artifact_id}").json())
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        # A break after the last byte leaves nothing to ask for.
        if part.exists() and part.stat().st_size == info.size_bytes:
            break
        try:
            _fetch(wire, artifact_id, part)
            break
        except ServerUnreachable:
            if attempt == ATTEMPTS:
                raise
            logger.debug("download continued", extra={"artifact": artifact_id, "attempt": attempt})
    digest, size_bytes = _digest(part)
    if digest != info.sha256 or info.size_bytes not in (None, size_bytes):
        part.unlink()
        raise DownloadDamaged(
            f"Artifact {artifact_id}: got {size_bytes} bytes with SHA-256 {digest}, "
            f"the server declares {info.size_bytes} bytes with {info.sha256}"
        )
    part.replace(target)
    return info


def _fetch(wire: Wire, artifact_id: str, part: Path) -> None:
    offset = part.stat().st_size if part.exists() else 0
    # Compression on the way would make byte ranges mean something else.
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    path = f"{API}/artifacts/{artifact_id}/content"
    with (
        wire.stream(path, headers=headers) as response,
        part.open("ab" if response.status_code == httpx.codes.PARTIAL_CONTENT else "wb") as file,
    ):
        # Pieces as they come: a break then loses none of what arrived.
        for chunk in response.iter_bytes():
            file.write(chunk)


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a zip into a folder and return the files, sorted.

    All names are checked before the first byte is written; every file appears complete.

    Args:
        archive: Zip file.
        folder: Made where it does not exist; files of the same names are replaced.

    Raises:
        DownloadDamaged: It is no zip, names something outside the folder, holds links or two files
            of one name, or unpacks to more than `MAX_UNPACKED_BYTES`.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_entries(archive.name, entries)
            folder.mkdir(parents=True, exist_ok=True)
            return sorted(_unpack_one(opened, entry, folder) for entry in entries)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DownloadDamaged(f"Archive {archive.name} is damaged: {error}") from error


def _check_entries(archive: str, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES:
        raise DownloadDamaged(f"Archive {archive} has {len(entries)} files; {MAX_FILES} allowed")
    total_bytes = sum(entry.file_size for entry in entries)
    if total_bytes > MAX_UNPACKED_BYTES:
        raise DownloadDamaged(
            f"Archive {archive} unpacks to {total_bytes} bytes; {MAX_UNPACKED_BYTES} allowed"
        )
    names = set()
    for entry in entries:
        name = PurePosixPath(entry.filename)
        outside = name.is_absolute() or ".." in name.parts or not name.parts
        if outside or "\\" in entry.filename or ":" in entry.filename:
            raise DownloadDamaged(f"Archive {archive} names {entry.filename!r}, outside its folder")
        mode = entry.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise DownloadDamaged(f"Archive {archive}: {entry.filename!r} is not a plain file")
        if name in names:
            raise DownloadDamaged(f"Archive {archive} names {entry.filename!r} twice")
        names.add(name)


def _unpack_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> Path:
    target = folder.joinpath(*PurePosixPath(entry.filename).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    left_bytes = entry.file_size
    with (
        archive.open(entry) as source,
        tempfile.NamedTemporaryFile(dir=target.parent, prefix=".part-", delete=False) as file,
    ):
        part = Path(file.name)
        try:
            while chunk := source.read(CHUNK_BYTES):
                left_bytes -= len(chunk)
                if left_bytes < 0:
                    raise DownloadDamaged(
                        f"Archive: {entry.filename!r} is larger than the {entry.file_size} bytes "
                        "it declares"
                    )
                file.write(chunk)
        except BaseException:
            part.unlink()
            raise
    part.chmod(0o644)
    part.replace(target)
    return target
