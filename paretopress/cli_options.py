"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from paretopress.client import DEFAULT_URL, Client

Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="PARETOPRESS_URL", help=f"Root of the server. [default: {DEFAULT_URL}]"
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="PARETOPRESS_API_KEY",
        show_envvar=True,
        help="Where the server asks for one.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Identifier of the job, job_...")]


def connect(url: str | None, api_key: str | None) -> Client:
    """Return the client that a command talks through."""
    return Client(url, api_key=api_key)
