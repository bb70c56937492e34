"""Problem documents (RFC 9457) as exceptions that read as a sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import httpx

from paretopress.errors import ClientError

PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclasses.dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field of a request.

    Attributes:
        pointer: Where, as a JSON pointer into the body, for example `/constraints/0/device`.
        message: What is wrong there.
    """

    pointer: str
    message: str


class ApiProblem(ClientError):
    """The server refused a request and said why.

    Attributes:
        status: HTTP status code.
        slug: Stable name of the kind of problem, the last segment of its `type`; empty when the
            answer was no problem document.
        title: The kind of problem in words.
        detail: This occurrence in words.
        errors: Field by field, where the problem is one of input.
        document: The whole problem document.
    """

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status = status
        self.document = dict(document)
        kind = str(document.get("type") or "")
        self.slug = "" if kind == "about:blank" else kind.rstrip("/").rpartition("/")[2]
        self.title = str(document.get("title") or f"HTTP status {status}")
        self.detail = str(document.get("detail") or "")
        self.errors = tuple(_field_problems(document.get("errors")))
        super().__init__(self.sentence())

    @staticmethod
    def of(response: httpx.Response) -> ApiProblem:
        """Build from a response whose body was read; a body that is no document is quoted."""
        document: Any = None
        if "json" in response.headers.get("content-type", ""):
            try:
                document = json.loads(response.content)
            except ValueError:
                document = None
        if not isinstance(document, dict):
            text = response.text.strip()
            document = {"title": response.reason_phrase, "detail": text[:300]}
        return ApiProblem(response.status_code, document)

    def sentence(self) -> str:
        """Return title and detail as one line, without the fields."""
        if not self.detail:
            return self.title
        if self.detail.startswith(self.title):
            return self.detail
        return f"{self.title}: {self.detail}"


def _field_problems(errors: Any) -> list[FieldProblem]:
    if not isinstance(errors, list):
        return []
    found = []
    for item in errors:
        if isinstance(item, dict):
            pointer = item.get("pointer", item.get("path", ""))
            found.append(FieldProblem(str(pointer), str(item.get("message", ""))))
        else:
            found.append(FieldProblem("", str(item)))
    return found
