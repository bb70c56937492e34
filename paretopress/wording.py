"""Numbers and bounds in words, the same in every table and progress line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paretopress.types import Reading

SHARES = frozenset({"top1", "top5", "agreement"})
NAMES: Mapping[str, str] = {
    "top1": "top-1",
    "top5": "top-5",
    "latency_ms": "latency",
    "latency_hot_ms": "hot latency",
    "load_ms": "load time",
    "first_inference_ms": "first inference",
    "peak_memory_bytes": "peak memory",
    "energy_mj": "energy",
    "runtime_bytes": "runtime size",
    "resident_bytes": "resident",
    "download_bytes": "download",
    "macs": "MACs",
    "flops": "FLOPs",
    "params": "parameters",
}
_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def metric_name(metric: str, statistic: str | None = None) -> str:
    """Return a metric's name for a heading."""
    name = NAMES.get(metric, metric)
    return f"{name} {statistic}" if statistic else name


def number(metric: str, value: float) -> str:
    """Return a value with its unit, in three or four digits.

    >>> number("top1", 0.9737), number("latency_ms", 1.2345), number("runtime_bytes", 1_250_000)
    ('97.37 %', '1.234 ms', '1.25 MB')
    >>> number("macs", 40_550_000), number("throughput", 812.3)
    ('40.5 M', '812.3 /s')
    """
    if metric in SHARES:
        return f"{100 * value:.2f} %"
    if metric.endswith("_ms"):
        return f"{value:.4g} ms"
    if metric == "energy_mj":
        return f"{value:.4g} mJ"
    if metric == "throughput":
        return f"{value:.4g} /s"
    suffix = "B" if metric.endswith("_bytes") else ""
    for size, letter in _STEPS:
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{suffix}"
    return f"{value:.4g} {suffix}".rstrip()


def reading_text(reading: Reading) -> str:
    """Return a reading's value; `~` marks an estimate, `!` a value that the server warns of."""
    text = number(reading.metric, reading.value)
    return f"{'~' if reading.estimated else ''}{text}{' !' if reading.warning else ''}"


def interval_text(reading: Reading) -> str:
    """Return a reading's 95 % interval; empty for exact quantities.

    Shares get both ends, because near 0 and 1 the value is not in the middle.
    """
    low, high = reading.low, reading.high
    if low is None or high is None or high <= low:
        return ""
    if reading.metric in SHARES:
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"±{(high - low) / 2:.2g}"


def ratio_text(reading: Reading) -> str:
    """Return how a reading relates to the baseline; empty where nothing is known.

    A time counts as faster or slower only where the whole interval of its ratio says so.
    """
    ratio = reading.ratio
    if ratio is None:
        return ""
    text = f"{ratio.value:.2f} x"
    if reading.device and ratio.low <= 1.0 <= ratio.high:
        return f"{text} (not told apart)"
    return text


def constraint_text(constraint: Mapping[str, Any]) -> str:
    """Return a bound as a line.

    >>> floor = {"metric": "top1", "at_least": -0.015}
    >>> constraint_text({**floor, "relative_to": "baseline_difference"})
    'top-1 >= baseline - 1.50 %'
    >>> constraint_text({"metric": "macs", "at_most": 0.5, "relative_to": "baseline"})
    'MACs <= 0.5 x baseline'
    """
    metric = str(constraint.get("metric", ""))
    at_most = constraint.get("at_most")
    sign, bound = ("<=", at_most) if at_most is not None else (">=", constraint.get("at_least"))
    bound = float(bound or 0.0)
    relation = constraint.get("relative_to")
    if relation == "baseline":
        limit = f"{bound:g} x baseline"
    elif relation == "baseline_difference":
        limit = f"baseline {'-' if bound < 0 else '+'} {number(metric, abs(bound))}"
    else:
        limit = number(metric, bound)
    place = f" on {constraint['device']}" if constraint.get("device") else ""
    return f"{metric_name(metric, constraint.get('statistic'))}{place} {sign} {limit}"


def duration(seconds: float) -> str:
    """Return a time span.

    >>> duration(7.4), duration(125), duration(7320)
    ('7 s', '2:05 min', '2:02 h')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
