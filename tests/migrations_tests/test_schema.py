"""Revisions build what the tables say, both ways, however many processes run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.schema import CheckConstraint

from service.db.schema import alembic_config
from service.db.session import Database
from service.db.tables import Tables

PROCESSES = 3


def engine_of(url: str) -> Engine:
    return create_engine(url)


def run_command(engine: Engine, name: str, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = engine
    getattr(command, name)(config, revision)


def revision_of(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def checks_of(connection: Connection) -> set[tuple[str, str | None]]:
    inspector = sqlalchemy.inspect(connection)
    return {
        (table, check["name"])
        for table in inspector.get_table_names()
        for check in inspector.get_check_constraints(table)
    }


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) == 1


def test_migrated_schema_is_the_metadata(database_url: str) -> None:
    Database(database_url).migrate()
    engine = engine_of(database_url)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Tables.metadata) == []
        declared = {
            (table.name, str(constraint.name))
            for table in Tables.metadata.sorted_tables
            for constraint in table.constraints
            if isinstance(constraint, CheckConstraint)
        }
        # Alembic does not compare CHECK constraints.
        assert checks_of(connection) == declared
        assert len(declared) >= 10
    engine.dispose()


def test_migrated_checks_admit_what_the_tables_admit(database_url: str, tmp_path: Path) -> None:
    Database(database_url).migrate()
    migrated, declared = engine_of(database_url), create_engine(f"sqlite:///{tmp_path / 'd.db'}")
    Tables.metadata.create_all(declared)

    def values(engine: Engine) -> dict[str, set[str]]:
        found = {}
        with engine.connect() as connection:
            inspector = sqlalchemy.inspect(connection)
            for table in Tables.metadata.tables:
                for check in inspector.get_check_constraints(table):
                    # Both write each admitted value between single quotes.
                    found[f"{table}.{check['name']}"] = set(check["sqltext"].split("'")[1::2])
        return found

    assert values(migrated) == values(declared)
    migrated.dispose()
    declared.dispose()


def test_every_revision_goes_up_down_and_up_again(database_url: str) -> None:
    engine = engine_of(database_url)
    revisions = [r.revision for r in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    for revision in reversed(revisions):
        run_command(engine, "upgrade", revision)
        assert revision_of(engine) == revision
    run_command(engine, "downgrade", "base")
    assert revision_of(engine) is None
    with engine.connect() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == ["alembic_version"]
    run_command(engine, "upgrade", "head")
    assert revision_of(engine) == revisions[0]
    engine.dispose()


def test_trials_of_the_first_schema_stay_with_all_that_hangs_on_them(database_url: str) -> None:
    engine = engine_of(database_url)
    run_command(engine, "upgrade", "0001")
    engine.dispose()
    moment, digest = "'2030-01-01 00:00:00'", "'" + "a" * 64 + "'"
    rows = [
        f"INSERT INTO models (id, name, state, artifact, scans, created_at, updated_at)"
        f" VALUES ('m', 'm', 'READY', '{{}}', 0, {moment}, {moment})",
        f"INSERT INTO datasets (id, name, state, artifact, scans, created_at, updated_at)"
        f" VALUES ('d', 'd', 'READY', '{{}}', 0, {moment}, {moment})",
        "INSERT INTO jobs (id, name, model_id, dataset_id, state, wish, spec, spec_digest, request,"
        " labels, seed, next_number, next_recorded, next_event, spent_trials, spent_wall_s,"
        " spent_device_s, created_at, updated_at)"
        f" VALUES ('j', 'j', 'm', 'd', 'RUNNING', 'run', '{{}}', {digest}, '{{}}', '{{}}', 1, 1, 0,"
        f" 1, 0, 0, 0, {moment}, {moment})",
        "INSERT INTO trials (id, job_id, number, plan, plan_digest, fidelity, base, seed, agent,"
        " state, artifacts, proposed_at)"
        f" VALUES ('t', 'j', 0, '{{}}', {digest}, 'full', '', 7, 'a', 'RUNNING', '{{}}', {moment})",
        "INSERT INTO attempts (id, trial_id, epoch, state, owner, started_at)"
        f" VALUES ('a', 't', 1, 'RUNNING', 'o', {moment})",
    ]
    database = Database(database_url)
    with database.write() as session:
        for row in rows:
            session.execute(text(row))
    database.migrate()
    with database.write() as session:
        found = session.execute(
            text("SELECT id, seed, preparation, preparation_key, found, resume FROM trials")
        ).all()
        assert [tuple(row) for row in found] == [("t", 7, None, "", None, "")]
        assert session.scalar(text("SELECT trial_id FROM attempts")) == "t"
        # References lead to the table as it is now.
        session.execute(
            text(
                "INSERT INTO readings VALUES (1, 't', 0, 'macs', '', '', 1, 1, 1, 1,"
                " NULL, NULL, NULL, NULL, FALSE, NULL)"
            )
        )
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM readings")) == 1
    database.close()


def test_migrating_again_changes_nothing(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    with database.write() as session:
        session.execute(
            text(
                "INSERT INTO devices (name, spec, fingerprint, created_at, seen_at)"
                " VALUES ('d', '{}', 'f', '2030-01-01 00:00:00', '2030-01-01 00:00:00')"
            )
        )
    database.migrate()
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM devices")) == 1
    database.close()


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    program = "import sys; from service.db.session import Database; Database(sys.argv[1]).migrate()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, database_url],
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(PROCESSES)
    ]
    errors = [process.communicate()[1].decode() for process in started]
    assert [p.returncode for p in started] == [0] * PROCESSES, "\n".join(errors)
    engine = engine_of(database_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM alembic_version")) == 1
    engine.dispose()


def test_a_migration_that_breaks_leaves_the_old_schema(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(database_url)

    def broken(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise RuntimeError("power cut")

    monkeypatch.setattr("service.db.session.upgrade_to_head", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        database.migrate()
    engine = engine_of(database_url)
    with engine.connect() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
    engine.dispose()
