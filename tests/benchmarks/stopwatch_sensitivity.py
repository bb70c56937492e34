"""Whether the stopwatch finds a difference of 5 %: 20 stages against 21, many times.

    make bench NAME=stopwatch_sensitivity

A chain of N identical convolutions costs N times one of them, so 21 stages take 1.05 times as long
as 20 by construction. Target: in at least 90 % of 40 comparisons, to a width of 5 % within the
default time, the interval lies above 1; the share of intervals that hold 1.05, and what a
comparison costs, stand beside it. That stages add up is measured too: 40 against 20 is 2.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from search.device import LOCAL_DEVICES
from tests.benchmarks.kept_rows import KeptRows
from tests.benchmarks.record import record
from tests.benchmarks.stopwatch_models import stages
from workers.meters.latency import DEFAULT, time_onnx
from workers.meters.latency_result import LatencyResult

FEWER, MORE = 20, 21
TRUTH = MORE / FEWER
TARGET = 0.9


def compared(candidate: bytes, baseline: bytes, seed: int) -> LatencyResult:
    """Compare two files at the default budget."""
    return time_onnx(candidate, baseline, LOCAL_DEVICES[0], seed=seed)


def row(candidate: bytes, baseline: bytes, seed: int) -> dict[str, Any]:
    """Return what one comparison found."""
    result = compared(candidate, baseline, seed)
    ratio = result.ratio
    return {
        "ratio": [ratio.value, ratio.low, ratio.high],
        "found": ratio.low > 1.0,
        "covers": ratio.low <= TRUTH <= ratio.high,
        "seconds": result.seconds,
        "blocks": len(result.interleaved.log_ratios),
    }


def main() -> None:
    """Compare 21 stages with 20 many times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    options = parser.parse_args()
    kept = KeptRows(options.work / f"stopwatch-sensitivity-{options.seed}.jsonl")
    fewer, more = stages(FEWER), stages(MORE)
    double = compared(stages(2 * FEWER), fewer, options.seed).ratio
    for index in range(options.n):
        if str(index) not in kept:
            kept.keep(str(index), row(more, fewer, options.seed * 10_000 + index))
    rows = list(kept)[: options.n]
    found = sum(item["found"] for item in rows)
    interval = binomtest(found, len(rows)).proportion_ci(0.95, method="exact")
    passed = found >= TARGET * len(rows)
    record(
        "stopwatch_sensitivity",
        passed=passed,
        seed=options.seed,
        n=len(rows),
        truth=TRUTH,
        found=found,
        share=found / len(rows),
        share_interval=[round(interval.low, 4), round(interval.high, 4)],
        covers=sum(item["covers"] for item in rows),
        ratio_median=statistics.median(item["ratio"][0] for item in rows),
        twice_the_stages=[double.value, double.low, double.high],
        seconds_median=round(statistics.median(item["seconds"] for item in rows), 3),
        blocks_median=statistics.median(item["blocks"] for item in rows),
        budget={"width": DEFAULT.width, "max_seconds": DEFAULT.max_seconds},
        target={"found": TARGET, "difference": TRUTH - 1},
    )
    kept.forget()
    if not passed:
        raise SystemExit(f"Target missed: found in {found} of {len(rows)}")


if __name__ == "__main__":
    main()
