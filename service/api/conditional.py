"""Answers with an ETag: whoever has the same content already gets 304 instead."""

from __future__ import annotations

import hashlib

from fastapi import Request, Response
from pydantic import BaseModel


def matches(header: str | None, etag: str) -> bool:
    """Whether `If-None-Match` names the tag; weak and strong tags compare alike (RFC 9110)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def conditional(request: Request, given: Response, body: BaseModel) -> Response:
    """Return the body with its ETag, or 304 where the caller has it.

    Args:
        request: Its `If-None-Match` counts.
        given: Headers set so far.
        body: What is answered.
    """
    content = body.model_dump_json().encode()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {name: value for name, value in given.headers.items() if name != "content-length"}
    headers |= {"ETag": etag, "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)
