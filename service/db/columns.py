"""Column types and small values that every table shares."""

from __future__ import annotations

import base64
import datetime
import secrets
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Enum
from sqlalchemy.types import TypeDecorator


def utc_now() -> datetime.datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def new_id(prefix: str) -> str:
    """Return a fresh identifier: `prefix`, `_` and 16 random base32 characters (80 bits)."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(10)).decode().lower()}"


class UtcTime(TypeDecorator[datetime.datetime]):
    """An aware UTC moment, also on SQLite, which forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        """Convert to UTC.

        Raises:
            ValueError: The moment has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"Moment {value} has no time zone; UTC is stored")
        return value.astimezone(datetime.UTC)

    def process_result_value(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        """Return the moment aware, in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=datetime.UTC)
        return value.astimezone(datetime.UTC)


JSON_VALUE = JSON(none_as_null=True)
"""JSON text. Not JSONB: reports and plans come back with their keys in the order written."""


def one_of(kinds: type[StrEnum], name: str | None = None) -> Enum:
    """Return a text column type with a CHECK that admits the enum's values only.

    `name` is the CHECK's, needed where a table has two columns of one kind.
    """
    return Enum(
        kinds,
        native_enum=False,
        create_constraint=True,
        length=16,
        name=name or kinds.__name__.lower(),
        values_callable=_values,
    )


def _values(kinds: Any) -> list[str]:
    return [kind.value for kind in kinds]
