"""The database: one door for reading, one for writing, and its migrations.

SQLite: write-ahead log, so readers never wait; every writing transaction takes the write lock at
its beginning (`BEGIN IMMEDIATE`), because a reader that turns writer midway is refused at once
under load (deferred transactions fail in most cases with some writers). `synchronous=FULL`: a
commit is on the disk before it is answered, so neither kill -9 nor a power cut loses it.
`durable=False` uses NORMAL: kill -9 still loses nothing, a power cut may undo the last commits.

PostgreSQL: READ COMMITTED with row locks for writing, one REPEATABLE READ snapshot for reading.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from service.db.errors import DatabaseUnreachable, DatabaseUrlInvalid
from service.db.schema import upgrade_to_head

BUSY_TIMEOUT_S = 30.0
"""Longest wait for SQLite's write lock; with 32 writers the slowest waited 3.4 s."""

POOL_SIZE = 8
POOL_OVERFLOW = 24


class Database:
    """A database whose transactions are `with` blocks.

    Safe for many threads of many processes; a process that forks must not share one.

    Attributes:
        url: Where it is.
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        """Check the URL; nothing is opened before the first transaction.

        Args:
            url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host/db`.
            durable: Whether commits on SQLite survive a power cut; see the module.

        Raises:
            DatabaseUrlInvalid: The URL is malformed or of another kind.
        """
        self.url = check_url(url)
        self._durable = durable
        self.engine = self._create_engine()
        reading = self.engine.execution_options(paretopress_mode="read")
        if not self._sqlite:
            reading = reading.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        writing = self.engine.execution_options(paretopress_mode="write")
        self._read = sessionmaker(reading, expire_on_commit=False)
        self._write = sessionmaker(writing, expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one moment and cannot write."""
        with self._read.begin() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session; committed at the block's end, rolled back when it raises."""
        with self._write.begin() as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to its newest revision; several processes may do so at once."""
        # A rebuilt SQLite table is dropped and renamed: foreign keys would forbid or cascade that.
        engine = self._create_engine(foreign_keys=False, pooled=False)
        try:
            with engine.execution_options(paretopress_mode="write").begin() as connection:
                upgrade_to_head(connection)
        finally:
            engine.dispose()

    def ping(self) -> None:
        """Ask the database for a sign of life.

        Raises:
            DatabaseUnreachable: There is none.
        """
        try:
            with self.read() as session:
                session.execute(sqlalchemy.text("SELECT 1"))
        except SQLAlchemyError as error:
            raise DatabaseUnreachable(f"The database does not answer: {error}") from error

    def close(self) -> None:
        """Close all idle connections."""
        self.engine.dispose()

    @property
    def _sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def _create_engine(self, *, foreign_keys: bool = True, pooled: bool = True) -> Engine:
        options: dict[str, Any] = {
            # NaN is no JSON: PostgreSQL refuses it, SQLite would keep it.
            "json_serializer": functools.partial(json.dumps, allow_nan=False),
        }
        if pooled:
            options |= {"pool_size": POOL_SIZE, "max_overflow": POOL_OVERFLOW}
        else:
            options["poolclass"] = NullPool
        if not self._sqlite:
            return sqlalchemy.create_engine(self.url, pool_pre_ping=True, **options)
        assert self.url.database is not None
        Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sqlalchemy.create_engine(
            self.url, connect_args={"timeout": BUSY_TIMEOUT_S}, **options
        )
        pragmas = (
            f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
            "PRAGMA journal_mode = WAL",
            f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}",
            f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        )

        @event.listens_for(engine, "connect")
        def _connect(connection: Any, record: object) -> None:
            # Python's sqlite3 begins transactions by its own rules; None leaves that to us.
            connection.isolation_level = None
            for pragma in pragmas:
                connection.execute(pragma)

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            reading = connection.get_execution_options().get("paretopress_mode") == "read"
            connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reading else 'OFF'}")
            connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

        return engine


def check_url(url: str) -> URL:
    """Return the parsed URL, with our driver for PostgreSQL.

    Raises:
        DatabaseUrlInvalid: It is malformed, of another kind, or an in-memory SQLite, which the
            processes of a server cannot share.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseUrlInvalid(
            f"Database URL {url!r} is malformed; for example sqlite:///paretopress.db"
        ) from error
    backend, shown = parsed.get_backend_name(), parsed.render_as_string(hide_password=True)
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or "mode" in parsed.query:
            raise DatabaseUrlInvalid(
                f"Database URL {shown!r} names no file; several processes share the database"
            )
        return parsed
    if backend in ("postgresql", "postgres"):
        if not parsed.database:
            raise DatabaseUrlInvalid(f"Database URL {shown!r} names no database")
        return parsed.set(drivername="postgresql+psycopg")
    raise DatabaseUrlInvalid(
        f"Database URL {shown!r} is of kind {backend!r}; use sqlite or postgresql"
    )
