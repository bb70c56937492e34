"""Alembic's entry: runs revisions on the connection that the caller gives.

There is no `alembic.ini`: `service.db.schema.alembic_config` is the configuration, and
`Database.migrate` the way to run it.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, Engine

from service.db.columns import UtcTime
from service.db.tables import Tables


def render(kind: str, item: Any, _autogenerate: object) -> str | Literal[False]:
    """Write our own column types as plain ones: a revision must not change with our code."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcTime) else False


def run(connection: Connection) -> None:
    """Run the asked-for revisions inside the connection's transaction, or in one of its own."""
    context.configure(
        connection=connection,
        target_metadata=Tables.metadata,
        # SQLite alters a table by writing it anew.
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=render,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if isinstance(given, Connection):
    run(given)
elif isinstance(given, Engine):
    with given.connect() as opened:
        run(opened)
else:
    raise RuntimeError("Migrations need a connection in the configuration's attributes")
