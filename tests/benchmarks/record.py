"""Where a benchmark's figures go: one JSON line on standard output and in `results/`."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("torch", "onnxruntime", "ray", "botorch", "optuna", "numpy")


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, load at the time."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"cpu": model, "cores": os.cpu_count(), "load_1min": round(os.getloadavg()[0], 2)}


def record(benchmark: str, *, passed: bool | None, seed: int, **figures: Any) -> None:
    """Append the figures to `results/BENCHMARK.jsonl` and print them as the last line.

    `passed` is None for a part of a benchmark, which decides nothing by itself.
    """
    line = json.dumps(
        {
            "benchmark": benchmark,
            "passed": passed,
            **figures,
            "seed": seed,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in VERSIONS},
        }
    )
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)
