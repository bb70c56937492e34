"""Files that jobs produced: what they are, and their bytes, whole or by range."""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.api.conditional import conditional, matches
from service.api.deps import PrincipalDep, Services, ServicesDep
from service.api.schemas.catalogue import ArtifactOut
from service.db import artifacts
from service.db.artifacts import StoredArtifact
from service.errors import RangeUnsatisfiable

router = APIRouter(prefix="/artifacts", tags=["artifacts"])

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """The bytes [start, end) of a file."""

    start: int
    end: int


def parse_range(header: str, size_bytes: int) -> Span | None:
    """Return the one range a header asks for; None where the whole file is the right answer.

    Several ranges and unknown units are answered whole, as RFC 9110 allows.

    Args:
        header: For example `bytes=0-99`, `bytes=100-`, `bytes=-10`.
        size_bytes: Of the file.

    Raises:
        RangeUnsatisfiable: It begins after the file's end.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start = int(first)
        end = min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= size_bytes or start >= end:
        raise RangeUnsatisfiable(
            f"{header!r} lies outside the file's {size_bytes} bytes", size_bytes
        )
    return Span(start, end)


def _size_bytes(parts: Services, stored: StoredArtifact) -> int:
    return (
        stored.size_bytes
        if stored.size_bytes is not None
        else parts.store.size_bytes(stored.digest)
    )


@router.get("/{artifact_id}", response_model=ArtifactOut)
def get_artifact(
    artifact_id: str, request: Request, response: Response, parts: ServicesDep, who: PrincipalDep
) -> Response:
    """Return what a file is."""
    with parts.database.read() as session:
        stored = artifacts.get(session, artifact_id)
    body = ArtifactOut(
        id=stored.id,
        role=stored.role,
        sha256=stored.digest,
        size_bytes=_size_bytes(parts, stored),
        media_type=stored.media_type,
        file_name=stored.file_name,
        created_at=stored.created_at,
        links={
            "self": f"/api/v1/artifacts/{stored.id}",
            "content": f"/api/v1/artifacts/{stored.id}/content",
        },
    )
    return conditional(request, response, body)


@router.head("/{artifact_id}/content", include_in_schema=False)
@router.get(
    "/{artifact_id}/content",
    response_class=Response,
    responses={
        200: {"description": "The whole file", "content": {"application/octet-stream": {}}},
        206: {"description": "The range asked for", "content": {"application/octet-stream": {}}},
        416: {"description": "The range lies outside the file"},
    },
)
def get_content(
    artifact_id: str, request: Request, parts: ServicesDep, who: PrincipalDep
) -> Response:
    """Return a file's bytes; `Range`, `If-Range` and `If-None-Match` are honoured."""
    with parts.database.read() as session:
        stored = artifacts.get(session, artifact_id)
    size = _size_bytes(parts, stored)
    etag = f'"{stored.digest}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(stored.file_name)}",
        "Content-Security-Policy": "sandbox",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    span = None
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", etag) == etag:
        span = parse_range(wanted, size)
    status, whole = (200, Span(0, size)) if span is None else (206, span)
    headers["Content-Length"] = str(whole.end - whole.start)
    if span is not None:
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=stored.media_type)
    chunks = parts.store.stream(stored.digest, whole.start, whole.end)
    return StreamingResponse(chunks, status, headers=headers, media_type=stored.media_type)
