"""Listings: some items and where the next ones begin."""

from __future__ import annotations

from typing import Generic, TypeVar

from service.api.schemas.strict import Answer

Item = TypeVar("Item")


class PageOut(Answer, Generic[Item]):
    """Some items of a listing.

    Attributes:
        data: In the listing's order.
        has_more: Whether more follow.
        next_cursor: Give it as `cursor` to get them; None on the last page.
    """

    data: list[Item]
    has_more: bool = False
    next_cursor: str | None = None
