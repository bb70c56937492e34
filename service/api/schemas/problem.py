"""The shape of every refusal (RFC 9457)."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from service.api.schemas.strict import Answer


class FaultOut(Answer):
    """One thing that is wrong with a request.

    Attributes:
        pointer: JSON pointer into the body; `#header/NAME`, `#query/NAME`, `#path/NAME` elsewhere.
        message: What is wrong, with the value and the limit.
    """

    pointer: str
    message: str


class ProblemDocument(Answer):
    """Why a request was refused. Some kinds carry further members.

    Attributes:
        type: `/problems/<slug>`, stable.
        title: The kind of problem.
        status: HTTP status code.
        detail: This occurrence.
        instance: Path of the request.
        request_id: Under which the server's log has it.
        retryable: Whether the same request may succeed later.
        errors: Field by field.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str | None = None
    retryable: bool = False
    errors: list[FaultOut] = Field(default_factory=list)
