"""The three sizes: of the file, of the download, and in memory after loading."""

from __future__ import annotations

import statistics

from search.device import LOCAL_DEVICES
from search.measurement import Interval, Reading
from workers.meters.fresh_process import ProcessFailed
from workers.meters.startup import start_once


def runtime_bytes(onnx: bytes, baseline: Reading | None = None) -> Reading:
    """Return the size of the file that the runtime loads; exact."""
    return Reading.exact("runtime_bytes", len(onnx), baseline.value if baseline else None)


def download_bytes(container: bytes, baseline: Reading | None = None) -> Reading:
    """Return the size of the entropy-coded container; exact."""
    return Reading.exact("download_bytes", len(container), baseline.value if baseline else None)


def resident_bytes(onnx: bytes, baseline: Reading | None = None, *, repeats: int = 3) -> Reading:
    """Return the memory that loading the model and running it once adds to a process.

    ONNX Runtime on the CPU, one thread, batch 1, each time in a fresh process; see
    `workers.meters.load_process` for what is counted.

    Args:
        onnx: The file.
        baseline: The dense model's reading; gives the ratio.
        repeats: Processes; the value is their median, `low` and `high` the least and the most.

    Raises:
        ValueError: A process could not load or run the file; with what it said.
    """
    try:
        seen = [start_once(onnx, LOCAL_DEVICES[0]).resident_bytes for _ in range(repeats)]
    except ProcessFailed as error:
        raise ValueError(f"The ONNX file could not be loaded: {error}") from error
    value = float(statistics.median(seen))
    low, high = float(min(seen)), float(max(seen))
    ratio = None
    if baseline is not None and baseline.low > 0:
        ratio = Interval(
            value=value / baseline.value, low=low / baseline.high, high=high / baseline.low
        )
    return Reading(metric="resident_bytes", value=value, low=low, high=high, n=repeats, ratio=ratio)
