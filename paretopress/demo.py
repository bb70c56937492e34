"""`paretopress demo`: the whole way on this machine, from a trained network to checkpoints.

A small CNN is trained on scikit-learn's digits, posted with three bounds at once, searched on a
local Ray, and its compressed checkpoints are pulled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from paretopress import wording
from paretopress.cli_errors import ExitCode, console, friendly_errors
from paretopress.client import Client
from paretopress.embedded import EmbeddedServer, free_port
from paretopress.errors import ClientError
from paretopress.jobs import Job
from paretopress.tables import front_table

DEVICE = "local/onnxruntime"
LATENCY = {"metric": "latency_ms", "statistic": "p50", "device": DEVICE}
CONSTRAINTS: tuple[dict[str, Any], ...] = (
    {**LATENCY, "at_most": 0.6, "relative_to": "baseline"},
    {"metric": "runtime_bytes", "at_most": 0.25, "relative_to": "baseline"},
    {"metric": "top1", "at_least": -0.015, "relative_to": "baseline_difference"},
)
DEFAULT_DATA = Path("paretopress-data/demo")
DEFAULT_OUTPUT = Path("demo-output")


def demo(
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Where the checkpoints go.")
    ] = DEFAULT_OUTPUT,
    data: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of the embedded server.")
    ] = DEFAULT_DATA,
    trials: Annotated[int, typer.Option(min=2, help="Search trials.")] = 24,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on loopback; 0 takes a free one.")
    ] = 0,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Leave the server running at the end.")
    ] = False,
) -> None:
    """Train a small network, search compressed forms of it within three bounds, pull them."""
    start = time.monotonic()
    with friendly_errors():
        output.mkdir(parents=True, exist_ok=True)
        trained = _train(output / "original.safetensors")
        _say(
            f"Trained digits_cnn: {100 * trained['accuracy']:.2f} % on held-out digits, "
            f"{trained['seconds']:.0f} s"
        )
        server = EmbeddedServer(data=data, port=port or free_port())
        _say(f"Starting the embedded server on {server.url}, data in {data} ...")
        server.start(outlive=keep_serving)
        try:
            with Client(server.url) as client:
                _say(f"Dashboard: {client.dashboard_url}")
                found = _search(client, trained, trials, output)
        finally:
            if not keep_serving:
                server.stop()
        _farewell(server, found, keep_serving, time.monotonic() - start)
        if not found:
            raise typer.Exit(ExitCode.INFEASIBLE)


def _train(weights: Path) -> dict[str, Any]:
    """Train in a process of its own, since the client has no torch; return what it reports."""
    _say("Training a small CNN on scikit-learn's digits ...")
    command = [sys.executable, "-m", "workers.demo_model", "--out", str(weights)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise ClientError(f"Training the demo's network failed:\n{ended.stderr.strip()[-2000:]}")
    report: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return {**report, "weights": weights}


def _search(client: Client, trained: dict[str, Any], trials: int, output: Path) -> list[Path]:
    """Register, submit, watch and pull; return the folders of the checkpoints."""
    model = client.register_model(
        name="digits_cnn",
        architecture="digits_cnn",
        weights=trained["weights"],
        preprocessing=trained["preprocessing"],
        input_shape=trained["input_shape"],
        num_classes=10,
    )
    # The training above used this very split, so the held-out digits are unseen by the network.
    dataset = client.register_dataset(name="digits", format="builtin", source="digits")
    _say("Bounds: " + "; ".join(wording.constraint_text(c) for c in CONSTRAINTS))
    job = client.submit(
        {
            "name": "demo",
            "model_id": model.id,
            "dataset_id": dataset.id,
            "objectives": [
                {"metric": "top1", "direction": "maximize"},
                {**LATENCY, "direction": "minimize"},
            ],
            "constraints": list(CONSTRAINTS),
            "recovery": {"epochs": 10, "augment": False},
            "budget": {"trials": trials},
            "parallelism": 2,
        }
    )
    info = job.wait()
    console.print(front_table(job.front(), info))
    return _pull(job, output)


def _pull(job: Job, output: Path) -> list[Path]:
    # A folder per job: an earlier run's members never stand among this one's.
    folders = job.pull_all(output / job.id)
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        _say(f"{folder}: {wording.number('runtime_bytes', size)} in all")
    return folders


def _farewell(server: EmbeddedServer, folders: list[Path], serving: bool, seconds: float) -> None:
    if folders:
        _say("\nA checkpoint loads without ParetoPress, with torch and safetensors alone:")
        _say(
            f"  cd {folders[0]}\n"
            '  python -c "from model import build; m = build(); print(m)"\n'
            "or its deployed graph, the file that was timed:\n"
            '  python -c "import onnxruntime as o; '
            "print(o.InferenceSession('model.onnx').get_inputs()[0])\""
        )
    if serving:
        _say(f"\nThe server goes on: {server.url}/dashboard/  (stop it: kill {server.pid})")
    else:
        _say(f"\nDashboard of this run: paretopress serve --data {server.data}")
    _say(f"Took {wording.duration(seconds)} in all.")


def _say(text: str) -> None:
    console.print(Text(text), soft_wrap=True)
