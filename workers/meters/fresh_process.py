"""Questions that only a fresh process can answer, asked as JSON.

The answer comes in a file, because runtimes write to standard output what they like.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class ProcessFailed(ValueError):
    """The process ended without an answer; with the end of what it said."""


def ask(module: str, question: Mapping[str, Any], *, threads: int, timeout_s: float) -> Any:
    """Return what `serve` of a module answers in a process of its own.

    The process inherits the calling thread's cores.

    Args:
        module: Run as `python -m module`.
        question: JSON data.
        threads: OpenMP threads of runtimes that have no other way to be told.
        timeout_s: After which it is killed.

    Raises:
        ProcessFailed: It failed, or took longer.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, str(answer)],
                input=json.dumps(question),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"No answer of {module} within {timeout_s:g} s") from error
        if done.returncode != 0 or not answer.exists():
            raise ProcessFailed(
                f"{module} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
            )
        return json.loads(answer.read_text())


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer the question on standard input into the file that the command line names."""
    found = answer(json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(found))
