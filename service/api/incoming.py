"""Uploaded parts: the JSON one, and the file, landed on disk to be checked before it is stored."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import File, Form, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ValidationError
from starlette.datastructures import UploadFile as StarletteUpload

from service.errors import BodyTooLarge

CHUNK_BYTES = 1 << 20
MAX_SPEC_BYTES = 1 << 18

Body = TypeVar("Body", bound=BaseModel)


def _text(part: Any) -> Any:
    # `curl -F spec=@model.json` sends a file, every HTTP library a field: both are meant.
    if isinstance(part, StarletteUpload):
        return part.file.read(MAX_SPEC_BYTES + 1).decode("utf-8", errors="replace")
    return part


SpecPart = Annotated[
    Annotated[str, BeforeValidator(_text)],
    Form(description="JSON; see the schema of the same resource", max_length=MAX_SPEC_BYTES),
]
FilePart = Annotated[UploadFile | None, File(description="The file")]


def parse_spec(kind: type[Body], text: str) -> Body:
    """Return the part `spec` as its type.

    Raises:
        RequestValidationError: It is no JSON or does not fit; pointers begin with `/spec`.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        found = [{**item, "loc": ("body", "spec", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found) from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """An uploaded file on disk, until the request is over.

    Attributes:
        path: Where it is.
        sha256: Of its content.
        size_bytes: Of its content.
    """

    path: Path
    sha256: str
    size_bytes: int


@contextmanager
def landed(upload: UploadFile, folder: Path, max_bytes: int) -> Iterator[Landed]:
    """Write an upload to disk, hashing it on the way; deleted at the block's end.

    Args:
        upload: The part.
        folder: Where to; made when absent.
        max_bytes: Largest file.

    Raises:
        BodyTooLarge: The file is larger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix="upload-")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            sha256, size_bytes = _copy(upload, out, max_bytes)
        yield Landed(path=path, sha256=sha256, size_bytes=size_bytes)
    finally:
        path.unlink(missing_ok=True)


def _copy(upload: UploadFile, out: BinaryIO, max_bytes: int) -> tuple[str, int]:
    source: BinaryIO = upload.file
    hasher = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK_BYTES):
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(
                f"The file {upload.filename!r} is larger than this server takes: "
                f"{max_bytes:,} bytes",
                extra={"limit_bytes": max_bytes},
            )
        hasher.update(chunk)
        out.write(chunk)
    return hasher.hexdigest(), size
