"""One concept, one file: nobody reads a file of a thousand lines whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT

MAX_LINES = 400
FOLDERS = ("paretopress", "service", "search", "workers", "compression", "migrations", "tests")
BANNED = ("utils", "helpers", "common", "manager", "base", "misc")
SOURCES = [
    path
    for folder in FOLDERS
    for suffix in ("*.py", "*.js", "*.css", "*.html")
    for path in sorted((ROOT / folder).rglob(suffix))
]


def test_there_are_sources() -> None:
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines; {MAX_LINES} are enough: split it"


def test_no_file_is_named_after_nothing() -> None:
    named = [path for path in SOURCES if path.stem.strip("_") in BANNED]
    assert not named, f"Name these after what they hold: {named}"
