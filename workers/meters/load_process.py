"""Process: loads a file once and runs it once; says what that took. See `fresh_process`.

**Memory.** Anonymous pages are counted: what the process allocated and touched. Pages of the
runtime's own program file are left out; whether they are resident, and how many processes share
them, has nothing to do with the model. Without `smaps_rollup`, resident minus shared pages. The
peak is the kernel's high-water mark of resident pages (`VmHWM`), set back just before loading,
minus what was resident then.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path
from typing import Any

from workers.meters import open_runtime
from workers.meters.fresh_process import serve

MODULE = "workers.meters.load_process"

PROC = Path("/proc/self")

_RESET_PEAK = "5"
"""What `clear_refs` takes to set the high-water mark back, see proc(5)."""


def added_bytes() -> int:
    """Return the bytes that this process has to itself."""
    with contextlib.suppress(OSError):
        for line in (PROC / "smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    fields = (PROC / "statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def status_bytes(field: str) -> int | None:
    """Return a size of `/proc/self/status`, for example `VmHWM`; None where it is not told."""
    with contextlib.suppress(OSError):
        for line in (PROC / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    return None


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Load the file that is asked about."""
    file = Path(question["file"]).read_bytes()
    runtime = open_runtime(question["runtime"], threads=question["threads"], seed=0)
    with runtime:
        gc.collect()
        with contextlib.suppress(OSError):
            (PROC / "clear_refs").write_text(_RESET_PEAK)
        added, resident = added_bytes(), status_bytes("VmRSS")
        start = time.perf_counter()
        model = runtime.load(file, question["batch"])
        loaded = time.perf_counter()
        model.run()
        end = time.perf_counter()
        highest = status_bytes("VmHWM")
        gc.collect()
        return {
            "resident_bytes": max(0, added_bytes() - added),
            "peak_bytes": (
                None if resident is None or highest is None else max(0, highest - resident)
            ),
            "load_ms": 1e3 * (loaded - start),
            "first_inference_ms": 1e3 * (end - loaded),
        }


if __name__ == "__main__":
    serve(_answer)
