"""`paretopress doctor`: what this machine has, and whether the server answers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from paretopress.cli_errors import ExitCode, console
from paretopress.cli_options import ApiKey, Url, connect
from paretopress.cli_serve import DEFAULT_DATA
from paretopress.embedded import missing_server_parts
from paretopress.errors import ClientError

MIN_PYTHON, END_PYTHON = (3, 11), (3, 14)
# A server installation is about 6 GB; a job of a small model keeps some tens of MB.
MIN_FREE_BYTES = 2 << 30

Finding = tuple[str, bool | None, str]
"""What was looked at; fine, not fine, or None for what is only told; in words."""


def findings(data: Path) -> list[Finding]:
    """Return what can be said of this machine without a server."""
    version = sys.version_info[:2]
    found: list[Finding] = [
        (
            "Python",
            MIN_PYTHON <= version < END_PYTHON,
            f"{platform.python_version()}; from 3.11 up to, not including, 3.14",
        ),
        ("paretopress", None, _version("paretopress")),
    ]
    missing = missing_server_parts()
    text = f"missing: {', '.join(missing)} (pip install 'paretopress[server]')"
    found.append(("server extra", not missing, text if missing else _version("torch", "ray")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found.append(("cores", None, f"{cores} usable"))
    folder = next(p for p in (data.absolute(), *data.absolute().parents) if p.exists())
    free_bytes = shutil.disk_usage(folder).free
    free = f"{free_bytes / (1 << 30):.1f} GiB free at {folder}; {MIN_FREE_BYTES >> 30} wanted"
    found.append(("disk", free_bytes >= MIN_FREE_BYTES, free))
    return found


def _version(*packages: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def server_finding(url: str | None, api_key: str | None) -> Finding:
    """Return whether a server answers; not having one is no fault."""
    with connect(url, api_key) as client:
        try:
            devices = client.get("/devices")
        except ClientError as error:
            return ("server", None, str(error))
        names = [str(item.get("name")) for item in devices.get("data", [])]
        return ("server", True, f"{client.url} answers; devices: {', '.join(names) or 'none'}")


def doctor(
    data: Annotated[Path, typer.Option(help="Data folder to look at.")] = DEFAULT_DATA,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Check this machine and the server; exit code 1 when something is not fine."""
    found = [*findings(data), server_finding(url, api_key)]
    table = Table(show_header=False, box=None)
    marks = {True: Text("ok", "green"), False: Text("no", "bold red"), None: Text("-")}
    for name, fine, text in found:
        table.add_row(marks[fine], name, Text(text))
    console.print(table)
    if any(fine is False for _, fine, _ in found):
        raise typer.Exit(ExitCode.REFUSED)
