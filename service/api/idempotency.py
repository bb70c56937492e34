"""`Idempotency-Key` on POST: a repeated request gets the first answer and does nothing more."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.api.deps import PrincipalDep, Services, ServicesDep
from service.db import idempotency
from service.db.idempotency import Answer

REPLAYED = "Idempotency-Replayed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """One request that must be done once.

    Attributes:
        services: The process's parts.
        route: Method and path.
        principal: Who asks.
        key: The header's value; None where the caller sent none, then nothing is remembered.
    """

    services: Services
    route: str
    principal: str
    key: str | None

    def digest(self, *content: str) -> str:
        """Return the SHA-256 of route and content: what makes two requests the same."""
        return hashlib.sha256("\n".join((self.route, *content)).encode()).hexdigest()

    def earlier(self, digest: str) -> JSONResponse | None:
        """Return the first answer where there is one; None otherwise.

        Raises:
            KeyReused: The key came with another request.
            KeyInFlight: The first request is not answered yet.
        """
        if self.key is None:
            return None
        with self.services.database.read() as session:
            answer = idempotency.get(
                session, self.key, request_digest=digest, principal=self.principal
            )
        return None if answer is None else _replay(answer)

    def answer(
        self,
        digest: str,
        status: int,
        create: Callable[[Any], tuple[BaseModel, Mapping[str, str]]],
    ) -> JSONResponse:
        """Create the resource and remember the answer, in one transaction.

        Args:
            digest: Of the request.
            status: Of the answer.
            create: Given the writing session; returns the body and headers (`Location`).

        Raises:
            KeyReused: The key came with another request.
            KeyInFlight: The first request is not answered yet.
        """
        with self.services.database.write() as session:
            if self.key is not None:
                answer = idempotency.begin(
                    session,
                    self.key,
                    request_digest=digest,
                    principal=self.principal,
                    keep_s=self.services.settings.idempotency_ttl_s,
                )
                if answer is not None:
                    return _replay(answer)
            body, headers = create(session)
            content = body.model_dump(mode="json")
            if self.key is not None:
                answer = Answer(status=status, headers=headers, body=content)
                idempotency.finish(session, self.key, answer, principal=self.principal)
        return JSONResponse(content, status, headers=dict(headers))


def _replay(answer: Answer) -> JSONResponse:
    headers = {**answer.headers, REPLAYED: "true"}
    return JSONResponse(dict(answer.body), answer.status, headers=headers)


def once(
    request: Request,
    parts: ServicesDep,
    who: PrincipalDep,
    key: Annotated[
        str | None,
        Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$"),
    ] = None,
) -> Once:
    """Return the request as one that must be done once."""
    return Once(
        services=parts, route=f"{request.method} {request.url.path}", principal=who, key=key
    )


OnceDep = Annotated[Once, Depends(once)]
