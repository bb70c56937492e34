"""An empty database for every test that asks for one; on both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import BACKENDS, fresh_database, postgres_server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of this session's own."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: SQLite, and PostgreSQL under the marker `postgres`."""
    server = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_url")
    with fresh_database(request.param, tmp_path, server) as url:
        yield url
