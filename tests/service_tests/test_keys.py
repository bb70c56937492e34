"""The process that makes the first API key."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import keys
from service.db import api_keys
from service.db.session import Database
from service.settings import Settings


def test_a_key_is_made_listed_and_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARETOPRESS_DATA_DIR", str(tmp_path))
    keys.main(["create", "first"])
    text = capsys.readouterr().out.strip()
    database = Database(Settings().database_url)
    with database.write() as session:
        found = api_keys.verify(session, text)
    assert found is not None
    assert found.name == "first"
    keys.main(["revoke", found.id])
    keys.main(["list"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("revoked")
    with database.write() as session:
        assert api_keys.verify(session, text) is None
