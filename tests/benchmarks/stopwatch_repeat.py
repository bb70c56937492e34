"""Whether two runs of the stopwatch, in two processes, say the same of ten compressed networks.

    make bench NAME=stopwatch_repeat

Widths, dropped blocks and INT8 of ResNet-20 and ResNet-56, each against its dense network, once per
process. Target: for at least 90 % of the files the two intervals overlap. That alone asks
little of two 95 % intervals, so it is also counted how often the two values differ by at most the
two half widths combined as independent errors are, sqrt(a^2 + b^2).
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from search.device import LOCAL_DEVICES
from tests.benchmarks.kept_rows import KeptRows
from tests.benchmarks.record import record
from tests.benchmarks.stopwatch_models import variants
from tests.conftest import real_data_folder
from workers.confirm import TIMING_S, WIDTH
from workers.meters.latency import time_onnx
from workers.readings import MIN_TIMING_S, ROUNDS

TARGET = 0.9


def kept_run(options: argparse.Namespace, run: int) -> KeptRows:
    """Return the rows of one process."""
    return KeptRows(options.work / f"stopwatch-repeat-{options.seed}-{run}.jsonl")


def one_run(options: argparse.Namespace, run: int) -> None:
    """Time every file once, in this process."""
    folder = real_data_folder()
    assert folder is not None
    kept = kept_run(options, run)
    found = itertools.islice(variants(folder), options.n)
    for index, (name, file, dense) in enumerate(found):
        if name in kept:
            continue
        result = time_onnx(
            file,
            dense,
            LOCAL_DEVICES[0],
            seed=1000 * options.seed + 100 * run + index,
            max_seconds=TIMING_S,
            min_seconds=MIN_TIMING_S,
            width=WIDTH,
            rounds=ROUNDS,
        )
        ratio = result.ratio
        kept.keep(
            name,
            {
                "ratio": [ratio.value, ratio.low, ratio.high],
                "seconds": round(result.seconds, 2),
                "warnings": list(result.warnings),
            },
        )


def agreement(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return how two runs of one file agree."""
    (a, a_low, a_high), (b, b_low, b_high) = first["ratio"], second["ratio"]
    combined = math.hypot((a_high - a_low) / 2, (b_high - b_low) / 2)
    return {
        "name": first["key"],
        "ratios": [first["ratio"], second["ratio"]],
        "overlap": a_low <= b_high and b_low <= a_high,
        "difference": abs(a - b) / a,
        "within_combined": abs(a - b) <= combined,
        "seconds": [first["seconds"], second["seconds"]],
    }


def main() -> None:
    """Time in two processes and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--run", type=int, help="time once in this process and stop")
    options = parser.parse_args()
    if real_data_folder() is None:
        raise SystemExit("The checkpoints are absent; set PARETOPRESS_TEST_DATA")
    if options.run is not None:
        one_run(options, options.run)
        return
    program = [sys.executable, "-m", "tests.benchmarks.stopwatch_repeat"]
    same = [f"--n={options.n}", f"--seed={options.seed}", f"--work={options.work}"]
    for run in (0, 1):
        subprocess.run([*program, *same, f"--run={run}"], check=True)
    second = {row["key"]: row for row in kept_run(options, 1)}
    rows = [agreement(row, second[row["key"]]) for row in kept_run(options, 0)]
    overlap = sum(row["overlap"] for row in rows)
    passed = overlap >= TARGET * len(rows)
    record(
        "stopwatch_repeat",
        passed=passed,
        seed=options.seed,
        n=len(rows),
        overlap=overlap,
        within_combined=sum(row["within_combined"] for row in rows),
        largest_difference=max(row["difference"] for row in rows),
        rows=rows,
        budget={"width": WIDTH, "max_seconds": TIMING_S, "rounds": ROUNDS},
        target={"overlap": TARGET},
    )
    for run in (0, 1):
        kept_run(options, run).forget()
    if not passed:
        raise SystemExit(f"Target missed: {overlap} of {len(rows)} agree")


if __name__ == "__main__":
    main()
