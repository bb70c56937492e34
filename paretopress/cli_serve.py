"""`paretopress serve`: everything of a server on this machine, in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from paretopress.cli_errors import error_console, friendly_errors
from paretopress.embedded import HOST, serve_command

DEFAULT_DATA = Path("paretopress-data")


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback only with API keys.")
    ] = HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8080,
    data: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of everything the server keeps.")
    ] = DEFAULT_DATA,
    code: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of your own Python code that models may name; loopback only.",
        ),
    ] = None,
) -> None:
    """Run the API, the conductor and local workers until Ctrl-C."""
    with friendly_errors():
        command = serve_command(host=host, port=port, data=data, code=code)
        text = Text.assemble(
            "Dashboard: ", (f"http://{host}:{port}/dashboard/", "bold"), "   data: ", str(data)
        )
        error_console.print(text, soft_wrap=True)
        # The server takes this process's place: signals reach it, nothing stands in between.
        os.execv(command[0], command)
