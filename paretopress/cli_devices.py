"""Commands about devices: `device run`, `device list`, `device drain`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from paretopress.cli_errors import console, friendly_errors
from paretopress.cli_options import ApiKey, Url, connect
from paretopress.client import DEFAULT_URL
from paretopress.errors import ClientError

app = typer.Typer(help="Boards that time compressed models.", no_args_is_help=True)

NEEDED = ("numpy", "httpx")


@app.command()
def run(
    server: Annotated[
        str,
        typer.Option("--server", "--url", envvar="PARETOPRESS_URL", help="Root of the server."),
    ] = DEFAULT_URL,
    name: Annotated[
        str | None, typer.Option(help="Name of this board's agent. [default: its host name]")
    ] = None,
    runtime: Annotated[str, typer.Option(help="What runs the models.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Threads of one inference.")] = 1,
    pool: Annotated[
        str | None,
        typer.Option(help="Boards of one kind that share the work. [default: the name]"),
    ] = None,
    memory_mib: Annotated[int, typer.Option(min=64, help="Limit of one timing.")] = 4096,
    state: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder that outlives the agent's process."),
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Time models on this machine for a server, until drained or Ctrl-C.

    Jobs name it as the device `board/POOL`.
    """
    with friendly_errors():
        missing = [need for need in NEEDED if importlib.util.find_spec(need) is None]
        if missing:
            raise ClientError(
                f"{', '.join(missing)} is not installed: pip install 'paretopress[device]'"
            )
        command = [sys.executable, "-m", "workers.device_agent", "--server", server]
        command += ["--runtime", runtime, "--threads", str(threads)]
        command += ["--memory-mib", str(memory_mib)]
        given = {"--name": name, "--pool": pool, "--state": state}
        for option, value in given.items():
            command += [] if value is None else [option, str(value)]
        if api_key:
            # Arguments are everybody's to see.
            os.environ["PARETOPRESS_API_KEY"] = api_key
        # The agent takes this process's place: signals reach it, nothing stands in between.
        os.execv(command[0], command)


@app.command("list")
def list_devices(url: Url = None, api_key: ApiKey = None) -> None:
    """List the devices that jobs may name, and the agents of boards."""
    with friendly_errors(), connect(url, api_key) as client:
        console.print(devices_table(client.get("/devices")["data"]))


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="Name of the agent.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give an agent nothing more: it ends what it holds, then its process."""
    with friendly_errors(), connect(url, api_key) as client:
        answer = client.post(f"/devices/agents/{name}:drain")
        console.print(Text(f"{answer['name']} {answer['state']}"))


def devices_table(devices: list[dict[str, Any]]) -> Table:
    """Return devices with their agents, one row each."""
    table = Table("device", "runtime", "threads", "place", "agents", box=None, pad_edge=False)
    for device in devices:
        agents = [
            f"{agent['name']} {str(agent['state']).lower()}, seen {agent['seen_at']}"
            for agent in device.get("agents") or []
        ]
        table.add_row(
            Text(str(device["name"])),
            Text(str(device["runtime"])),
            str(device["threads"]),
            Text(str(device.get("place", "local"))),
            Text("\n".join(agents)),
        )
    return table
