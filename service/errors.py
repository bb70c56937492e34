"""Why a request is refused; `service/api/errors.py` alone knows the status codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request.

    Attributes:
        pointer: Where, as a JSON pointer into the body; for other places `#header/NAME`,
            `#query/NAME` or `#path/NAME`.
        message: What is wrong, with the value and the limit.
    """

    pointer: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Return plain JSON data."""
        return {"pointer": self.pointer, "message": self.message}


class ServiceError(Exception):
    """The request is refused.

    Attributes:
        detail: This occurrence in words, for the user.
        faults: Field by field, where the request's content is at fault.
        extra: Members that the problem document carries beside the usual ones.
    """

    def __init__(
        self,
        detail: str,
        faults: Sequence[Fault] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)
        self.extra = dict(extra or {})


class SpecInvalid(ServiceError):
    """The request contradicts itself or names what does not exist."""

    @staticmethod
    def of(faults: Sequence[Fault]) -> SpecInvalid:
        """Build from at least one fault, with the first one in the detail."""
        rest = f" (and {len(faults) - 1} more, see errors)" if len(faults) > 1 else ""
        return SpecInvalid(faults[0].message + rest, faults)


class ConstraintUnreachable(SpecInvalid):
    """No plan of the job's space can meet a bound; known by arithmetic, without any trial."""


class NotReady(ServiceError):
    """The model or dataset is still being scanned; the same request may succeed later."""


class Rejected(ServiceError):
    """The model or dataset was scanned and refused."""


class IllegalState(ServiceError):
    """The resource is in a state in which this cannot be done."""


class BodyTooLarge(ServiceError):
    """The body, or a file in it, is larger than the server takes."""


class CodeNotAllowed(ServiceError):
    """The model names Python code and the server does not run users' code."""


class PathNotAllowed(ServiceError):
    """The dataset names a path that the operator has not opened."""


class KeyRequired(ServiceError):
    """The request carries no valid API key."""


class KeyForbidden(ServiceError):
    """The API key is valid and does not allow this."""


class HostRefused(ServiceError):
    """The request came under a host name that is not ours (DNS rebinding)."""


class RangeUnsatisfiable(ServiceError):
    """The requested bytes lie outside the file.

    Attributes:
        size_bytes: Of the whole file.
    """

    def __init__(self, detail: str, size_bytes: int) -> None:
        super().__init__(detail)
        self.size_bytes = size_bytes


class TooManyStreams(ServiceError):
    """As many event streams are open as the server allows."""


class AgentRefused(ServiceError):
    """The request does not come from the agent of a board that it says it is."""


class NameTaken(ServiceError):
    """A living agent of another board has this name."""


class PoolMismatch(ServiceError):
    """The board is not like the others of its pool."""


class AttemptStale(ServiceError):
    """The order was given to someone else meanwhile, or is answered already."""


class ResultImplausible(ServiceError):
    """The times cannot have been measured."""
