"""The files of a checkpoint as bytes: one archive, and the card told in two of them; no torch."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

from compression.errors import CheckpointInvalid
from compression.model_card import ModelCard
from compression.readme import render_readme

CheckpointFiles = Mapping[str, bytes]
"""Content by file name; the names are those of the folder, without directories."""

REPORT, README = "report.json", "README.md"
"""The two files that tell the card; all others are what it is about."""

# The oldest moment a zip can name: equal files make equal archives on any day.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o644


def with_card(files: CheckpointFiles, card: ModelCard) -> CheckpointFiles:
    """Return the files with the two that tell the card, in place of earlier ones.

    Raises:
        CheckpointInvalid: A number of the card is not finite.
    """
    told = {name: data for name, data in files.items() if name not in (REPORT, README)}
    digests = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(told.items())
    }
    told[REPORT] = json_file({**card.to_json(), "files": digests})
    sizes = {name: len(data) for name, data in sorted(told.items())}
    told[README] = render_readme(card, sizes).encode()
    return dict(sorted(told.items()))


def read_card(files: CheckpointFiles) -> ModelCard:
    """Return the card that the files tell.

    Raises:
        CheckpointInvalid: There is none, it is damaged, or of another version.
    """
    try:
        return ModelCard.from_json(json.loads(files[REPORT]))
    except (KeyError, ValueError) as error:
        raise CheckpointInvalid(f"The checkpoint has no readable {REPORT}: {error}") from error


def zip_bytes(files: CheckpointFiles) -> bytes:
    """Return one zip archive of the files; equal files give equal bytes, on any machine.

    Nothing is deflated: weights hardly shrink, and deflate's output depends on zlib's version.

    Raises:
        CheckpointInvalid: A name is not that of a plain file.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            if not name or name in (".", "..") or set(name) & set("/\\:\0"):
                raise CheckpointInvalid(f"{name!r} is not a plain file name")
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, whatever this machine is
            entry.external_attr = _FILE_MODE << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def unzip(archive: bytes) -> CheckpointFiles:
    """Return the files of `zip_bytes`.

    Raises:
        CheckpointInvalid: It is no zip archive, or a damaged one.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            return {name: members.read(name) for name in members.namelist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise CheckpointInvalid(f"The checkpoint is no readable archive: {error}") from error


def json_file(data: Any) -> bytes:
    """Readable, in one canonical order; NaN is refused."""
    try:
        text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise CheckpointInvalid(f"A number of the report is not finite: {error}") from error
    return f"{text}\n".encode()
