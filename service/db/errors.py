"""What can go wrong with stored things; messages name the thing and the value."""

from __future__ import annotations


class DatabaseError(Exception):
    """Something about the database or what is in it is wrong."""


class DatabaseUrlInvalid(DatabaseError, ValueError):
    """The database URL cannot be used."""


class DatabaseUnreachable(DatabaseError):
    """The database does not answer."""


class NotFound(DatabaseError, LookupError):
    """Nothing is stored under this name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is no {kind} {name!r}")
        self.kind = kind
        self.name = name


class CursorInvalid(DatabaseError, ValueError):
    """The page cursor was not made by this listing."""


class KeyReused(DatabaseError):
    """The idempotency key came before with another request."""


class KeyInFlight(DatabaseError):
    """The first request with this idempotency key has not been answered yet."""
