"""Alembic, configured in code: brings a database to the newest schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

import migrations

ADVISORY_LOCK = 7_261_735_011
"""Any number that nobody else uses for a PostgreSQL advisory lock: 'migrating paretopress'."""


def alembic_config() -> Config:
    """Return Alembic's configuration; give it a connection under `attributes["connection"]`."""
    config = Config()
    folder = Path(migrations.__path__[0])
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgrade_to_head(connection: Connection) -> None:
    """Run what is missing, inside the connection's transaction.

    A second process waits until the first has committed and then finds nothing to do: on SQLite
    by the write lock that the transaction holds, on PostgreSQL by an advisory lock.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
