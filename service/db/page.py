"""Pages of listings: an opaque cursor names the last item seen, never an offset."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Sequence
from typing import Generic, TypeVar

from service.db.errors import CursorInvalid

T = TypeVar("T")

VERSION = 1
MAX_LIMIT = 500


@dataclasses.dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a listing.

    Attributes:
        items: In the listing's order.
        next_cursor: Where the next page begins; None on the last one.
    """

    items: Sequence[T]
    next_cursor: str | None


def encode_cursor(kind: str, *key: str | int) -> str:
    """Return the cursor of the item with this sort key in the listing `kind`."""
    text = json.dumps([VERSION, kind, *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str, *types: type) -> list[str | int]:
    """Return the sort key in a cursor of the listing `kind`.

    Raises:
        CursorInvalid: It is not such a cursor.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, made_for, *rest = json.loads(text)
    except (binascii.Error, ValueError, TypeError) as error:
        raise CursorInvalid(f"Cursor {cursor[:80]!r} is not one of ours") from error
    key: list[str | int] = list(rest)
    if (version, made_for) != (VERSION, kind) or [type(part) for part in key] != list(types):
        raise CursorInvalid(f"Cursor {cursor[:80]!r} does not belong to the listing of {kind}")
    return key


def check_limit(limit: int) -> int:
    """Return the limit.

    Raises:
        ValueError: It is out of range.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit is {limit}; 1 to {MAX_LIMIT} is allowed")
    return limit
