"""The three sizes: of the file, of the download, and in memory after loading."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from search.measurement import Interval, Reading

LOAD_TIMEOUT_S = 120.0

_MEASURE = """
import gc, json, os, sys
import numpy, onnxruntime

def added():
    try:
        with open("/proc/self/smaps_rollup") as lines:
            for line in lines:
                if line.startswith("Anonymous:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    with open("/proc/self/statm") as line:
        fields = line.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
options.log_severity_level = 3
gc.collect()
before = added()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {
    entry.name: numpy.zeros([d if isinstance(d, int) else 1 for d in entry.shape], numpy.float32)
    for entry in session.get_inputs()
}
session.run(None, feeds)
gc.collect()
print(json.dumps(max(0, added() - before)))
"""
"""Runs in a fresh interpreter, which imports the runtime and nothing else.

Anonymous pages are counted: what the process allocated and touched. Pages of the runtime's own
program file are left out; whether they are resident, and how many processes share them, has
nothing to do with the model. Without `smaps_rollup`, resident minus shared pages.
"""


def runtime_bytes(onnx: bytes, baseline: Reading | None = None) -> Reading:
    """Return the size of the file that the runtime loads; exact."""
    return Reading.exact("runtime_bytes", len(onnx), baseline.value if baseline else None)


def download_bytes(container: bytes, baseline: Reading | None = None) -> Reading:
    """Return the size of the entropy-coded container; exact."""
    return Reading.exact("download_bytes", len(container), baseline.value if baseline else None)


def resident_bytes(onnx: bytes, baseline: Reading | None = None, *, repeats: int = 3) -> Reading:
    """Return the memory that loading the model and running it once adds to a process.

    ONNX Runtime on the CPU, one thread, batch 1, each time in a fresh process.

    Args:
        onnx: The file.
        baseline: The dense model's reading; gives the ratio.
        repeats: Processes; the value is their median, `low` and `high` the least and the most.

    Raises:
        ValueError: A process could not load or run the file; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(onnx)
        seen = [_load_once(path) for _ in range(repeats)]
    value = float(statistics.median(seen))
    low, high = float(min(seen)), float(max(seen))
    ratio = None
    if baseline is not None and baseline.low > 0:
        ratio = Interval(
            value=value / baseline.value, low=low / baseline.high, high=high / baseline.low
        )
    return Reading(metric="resident_bytes", value=value, low=low, high=high, n=repeats, ratio=ratio)


def _load_once(path: Path) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _MEASURE, str(path)],
        capture_output=True,
        text=True,
        timeout=LOAD_TIMEOUT_S,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(f"The ONNX file could not be loaded: {done.stderr.strip()[-500:]}")
    return int(json.loads(done.stdout))
