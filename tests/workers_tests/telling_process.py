"""Process: tells its environment, its number and its cores; fails when it is asked to."""

from __future__ import annotations

import os
import sys
from typing import Any

from workers.meters.fresh_process import serve

MODULE = "tests.workers_tests.telling_process"


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Tell, after writing where answers do not belong."""
    sys.stdout.write("written by a runtime\n")
    sys.stdout.flush()
    if "fail" in question:
        raise RuntimeError(question["fail"])
    return {
        "environment": dict(os.environ),
        "process": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "echo": question.get("echo"),
    }


if __name__ == "__main__":
    serve(_answer)
