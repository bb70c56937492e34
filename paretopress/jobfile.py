"""A job as a file: JSON or TOML with the fields of `POST /jobs`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from paretopress.errors import JobFileInvalid


def read_job(path: Path) -> dict[str, Any]:
    """Return the job of a file; TOML where its name ends in `.toml`, JSON otherwise.

    Raises:
        JobFileInvalid: It cannot be read, or is not a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise JobFileInvalid(f"Job file {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise JobFileInvalid(f"Job file {path} holds a {type(data).__name__}, not a table")
    return data
