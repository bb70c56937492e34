"""Rows of a long benchmark on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class KeptRows:
    """A JSON-lines file of rows, each with a key.

    Args:
        path: Of the file; made when the first row is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._rows: dict[str, dict[str, Any]] = {}
        for line in lines:
            row = json.loads(line)
            self._rows[row["key"]] = row

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows.values())

    def keep(self, key: str, row: Mapping[str, Any]) -> None:
        """Add a row and write it down at once."""
        self._rows[key] = {"key": key, **row}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(self._rows[key]) + "\n")

    def forget(self) -> None:
        """Remove the file: the benchmark is recorded, and the next run is a new one."""
        self._path.unlink(missing_ok=True)
