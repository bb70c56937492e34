"""Databases for tests: SQLite in a folder, and a PostgreSQL server of our own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from service.db.session import Database

BACKENDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))


def postgres_programs() -> Path | None:
    """Return the folder with `initdb` and `pg_ctl`, or None where they are not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run PostgreSQL on a socket in a temporary folder; yield the URL of its first database.

    PostgreSQL refuses to run as root: then it runs as the user `postgres`.
    """
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    # fsync is off: these tests kill clients, never the server.
    options = f"-c listen_addresses='' -c fsync=off -k {folder}"
    data, log = str(folder / "data"), str(folder / "log")
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        _run(folder, programs / "initdb", "-D", data, "-U", "tests", "-A", "trust", "--no-sync")
        start = ("-D", data, "-l", log, "-w", "-o", options, "start")
        _run(folder, programs / "pg_ctl", *start)
        try:
            yield f"postgresql+psycopg://tests@/postgres?host={folder}"
        finally:
            _run(folder, programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@contextmanager
def fresh_database(backend: str, folder: Path, server_url: str | None) -> Iterator[str]:
    """Yield the URL of an empty database; on PostgreSQL it is dropped afterwards."""
    if backend == "sqlite":
        yield f"sqlite:///{folder / 'tests.db'}"
        return
    assert server_url is not None
    name = f"t_{secrets.token_hex(6)}"
    server = sqlalchemy.create_engine(server_url, isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield server_url.replace("@/postgres?", f"@/{name}?")
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        server.dispose()


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """Yield a migrated database; SQLite without the wait for the disk, which tests do not need."""
    database = Database(url, durable=False)
    database.migrate()
    try:
        yield database
    finally:
        database.close()


def _run(folder: Path, program: Path, *arguments: str) -> None:
    command: Sequence[str | Path] = (program, *arguments)
    if os.getuid() == 0:
        command = ("runuser", "-u", "postgres", "--", *command)
    # `pg_ctl start` hands its output to the server: a pipe would never end.
    with (folder / "output").open("a+") as output:
        code = subprocess.run(command, cwd=folder, stdout=output, stderr=output, check=False)
        output.seek(0)
        assert code.returncode == 0, output.read()
