"""The only table of status codes: what went wrong, as problem documents (RFC 9457).

Every refusal that this server sends, its own and the framework's, passes through here.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from compression.errors import DataRefused, ModelRefused, PlanInvalid
from search.errors import IllegalTransition, ProblemInvalid
from service import errors
from service.db import errors as db_errors
from service.logs import request_id
from workers.errors import BlobMissing, DeviceUnknown

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of problem; its `type` is `/problems/<slug>` and stays for ever."""

    slug: str
    status: int
    title: str
    retryable: bool = False
    retry_after_s: int | None = None


VALIDATION = Kind(slug="validation", status=422, title="The request is not valid")
INTERNAL = Kind(slug="internal", status=500, title="The server failed", retryable=True)

KINDS: Mapping[type[Exception], Kind] = {
    errors.ConstraintUnreachable: Kind(
        slug="unreachable-constraint", status=422, title="No plan can meet a constraint"
    ),
    errors.SpecInvalid: VALIDATION,
    errors.NotReady: Kind(
        slug="not-ready",
        status=409,
        title="The resource is still being scanned",
        retryable=True,
        retry_after_s=2,
    ),
    errors.Rejected: Kind(slug="rejected", status=409, title="The resource was refused"),
    errors.IllegalState: Kind(
        slug="illegal-state", status=409, title="Not possible in the present state"
    ),
    errors.BodyTooLarge: Kind(slug="body-too-large", status=413, title="The body is too large"),
    errors.CodeNotAllowed: Kind(
        slug="code-not-allowed", status=403, title="This server does not run users' code"
    ),
    errors.PathNotAllowed: Kind(
        slug="path-not-allowed", status=403, title="The path is not open to users"
    ),
    errors.KeyRequired: Kind(slug="key-required", status=401, title="An API key is required"),
    errors.KeyForbidden: Kind(
        slug="key-forbidden", status=403, title="The API key does not allow this"
    ),
    errors.HostRefused: Kind(
        slug="host-refused", status=421, title="This server does not answer to that name"
    ),
    errors.RangeUnsatisfiable: Kind(
        slug="range-unsatisfiable", status=416, title="The range lies outside the file"
    ),
    errors.TooManyStreams: Kind(
        slug="too-many-streams",
        status=503,
        title="Too many event streams are open",
        retryable=True,
        retry_after_s=5,
    ),
    errors.AgentRefused: Kind(
        slug="agent-refused", status=403, title="No such agent of a board has this token"
    ),
    errors.NameTaken: Kind(slug="name-taken", status=409, title="An agent has this name already"),
    errors.PoolMismatch: Kind(
        slug="pool-mismatch", status=409, title="The board is not like the others of its pool"
    ),
    errors.AttemptStale: Kind(
        slug="attempt-stale", status=409, title="The order is no longer this attempt's"
    ),
    errors.ResultImplausible: Kind(
        slug="result-implausible", status=422, title="The times cannot have been measured"
    ),
    db_errors.DatabaseUnreachable: Kind(
        slug="database-unreachable",
        status=503,
        title="The database does not answer",
        retryable=True,
        retry_after_s=5,
    ),
    db_errors.NotFound: Kind(slug="not-found", status=404, title="There is no such resource"),
    db_errors.CursorInvalid: Kind(
        slug="cursor-invalid", status=422, title="The page cursor is not valid"
    ),
    db_errors.KeyReused: Kind(
        slug="idempotency-key-reused",
        status=422,
        title="The Idempotency-Key was used for another request",
    ),
    db_errors.KeyInFlight: Kind(
        slug="idempotency-key-in-flight",
        status=409,
        title="The first request with this Idempotency-Key is not answered yet",
        retryable=True,
        retry_after_s=1,
    ),
    ModelRefused: Kind(slug="model-refused", status=422, title="The model cannot be accepted"),
    DataRefused: Kind(slug="data-refused", status=422, title="The dataset cannot be accepted"),
    PlanInvalid: VALIDATION,
    ProblemInvalid: VALIDATION,
    DeviceUnknown: Kind(slug="not-found", status=404, title="There is no such resource"),
    IllegalTransition: Kind(
        slug="illegal-state", status=409, title="Not possible in the present state"
    ),
    BlobMissing: Kind(
        slug="content-missing", status=410, title="The file's content is no longer stored"
    ),
}

FRAMEWORK: Mapping[int, Kind] = {
    kind.status: kind
    for kind in (
        Kind(slug="bad-request", status=400, title="The request cannot be read"),
        Kind(slug="not-found", status=404, title="There is no such resource"),
        Kind(slug="method-not-allowed", status=405, title="The resource has no such method"),
        Kind(slug="body-too-large", status=413, title="The body is too large"),
        Kind(slug="media-type", status=415, title="The body's media type is not understood"),
        VALIDATION,
        INTERNAL,
    )
}

SLUGS = tuple(sorted({kind.slug for kind in (*KINDS.values(), *FRAMEWORK.values())}))


def problem(
    kind: Kind,
    detail: str,
    *,
    instance: str,
    faults: Sequence[errors.Fault] = (),
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the problem document as a response.

    Args:
        kind: What kind of problem.
        detail: This occurrence in words.
        instance: Path of the request.
        faults: Field by field.
        extra: Further members.
        headers: Beside `Retry-After`.
    """
    document = {
        "type": f"/problems/{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": instance,
        "request_id": request_id.get(),
        "retryable": kind.retryable,
        "errors": [fault.to_json() for fault in faults],
        **(extra or {}),
    }
    given = dict(headers or {})
    if kind.retry_after_s is not None:
        given["Retry-After"] = str(kind.retry_after_s)
    return JSONResponse(document, kind.status, headers=given, media_type=MEDIA_TYPE)


def _kind_of(error: Exception) -> Kind:
    return next((KINDS[base] for base in type(error).__mro__ if base in KINDS), INTERNAL)


def domain_error(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to an error of ours."""
    kind = _kind_of(error)
    faults: Sequence[errors.Fault] = ()
    extra: Mapping[str, Any] = {}
    detail = str(error)
    headers: dict[str, str] = {}
    if isinstance(error, errors.ServiceError):
        detail, faults, extra = error.detail, error.faults, error.extra
    elif isinstance(error, BlobMissing):
        detail = str(error.args[0])
    if isinstance(error, errors.KeyRequired):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.RangeUnsatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return problem(
        kind, detail, instance=request.url.path, faults=faults, extra=extra, headers=headers
    )


def _pointer(location: Sequence[str | int]) -> str:
    place, *rest = location or ("body",)
    if place == "body":
        parts = [str(part) for part in rest]
        return "".join("/" + p.replace("~", "~0").replace("/", "~1") for p in parts)
    return f"#{place}/{'/'.join(str(part) for part in rest)}"


def faults_of(found: Sequence[Any]) -> list[errors.Fault]:
    """Return pydantic's errors as faults; what was sent is not repeated but for short scalars."""
    faults = []
    for item in found:
        message = str(item["msg"]).removeprefix("Value error, ")
        given, location = item.get("input"), item["loc"]
        if item["type"] == "json_invalid":
            message = f"Not JSON: {item.get('ctx', {}).get('error', message)}"
            # The framework locates wrong JSON by its offset, which is no member of the body.
            location = tuple(part for part in location if isinstance(part, str))
        elif isinstance(given, str | int | float) and len(str(given)) <= 80:
            message = f"{message}; got {given!r}"
        faults.append(errors.Fault(_pointer(location), message))
    return faults


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = faults_of(error.errors())
    sentence = errors.SpecInvalid.of(faults).detail
    where = f"{faults[0].pointer}: " if faults[0].pointer else ""
    return problem(VALIDATION, where + sentence, instance=request.url.path, faults=faults)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = FRAMEWORK.get(error.status_code) or Kind(
        slug="http", status=error.status_code, title=f"HTTP status {error.status_code}"
    )
    path = request.url.path
    details = {
        404: f"Nothing is at {path}",
        405: f"{path} does not take {request.method}",
    }
    detail = details.get(error.status_code, str(error.detail))
    return problem(kind, detail, instance=path, headers=error.headers)


def internal(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to what nobody expected: no trace leaves the server, the log has it."""
    logger.error(
        "request failed",
        extra={"action": "request_failed", "path": request.url.path, "method": request.method},
        exc_info=error,
    )
    detail = f"Something unexpected went wrong; the server's log has it under {request_id.get()}"
    return problem(INTERNAL, detail, instance=request.url.path)


def install(app: FastAPI) -> None:
    """Make every refusal of the app a problem document."""
    for error_type in KINDS:
        app.add_exception_handler(error_type, domain_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, internal)
