"""A migrated, empty database for every test that asks for one; on both kinds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from service.db.session import Database
from service.db.tables import Tables
from tests.databases import BACKENDS, fresh_database, opened, postgres_server


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file; copying it is faster than migrating."""
    path = tmp_path_factory.mktemp("migrated") / "tests.db"
    with opened(f"sqlite:///{path}"):
        pass
    return path


@pytest.fixture(scope="session")
def migrated_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database of a PostgreSQL server of this session's own."""
    folder = tmp_path_factory.mktemp("postgres")
    with postgres_server() as server, fresh_database("postgresql", folder, server) as url:
        with opened(url):
            pass
        yield url


@pytest.fixture(params=BACKENDS)
def database(
    request: pytest.FixtureRequest, tmp_path: Path, migrated_file: Path
) -> Iterator[Database]:
    """A migrated, empty database: SQLite, and PostgreSQL under the marker `postgres`."""
    if request.param == "sqlite":
        path = tmp_path / "tests.db"
        shutil.copy(migrated_file, path)
        database = Database(f"sqlite:///{path}", durable=False)
    else:
        database = Database(request.getfixturevalue("migrated_postgres"))
        names = ", ".join(table.name for table in Tables.metadata.sorted_tables)
        with database.write() as session:
            session.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
    yield database
    database.close()
