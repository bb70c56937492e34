"""A reading as a row of a model card, beside the original network's."""

from __future__ import annotations

from compression.model_card import Interval, MetricRow
from search.measurement import Interval as Spread
from search.measurement import Reading
from search.metric import ACCURACIES, METRICS


def metric_row(
    reading: Reading,
    *,
    baseline: Interval | None = None,
    drop: Spread | None = None,
    macs_ratio: float | None = None,
) -> MetricRow:
    """Return the row of a reading.

    Args:
        reading: Of the checkpoint.
        baseline: The original network's; what the reading's own ratio says where it is None.
        drop: Paired loss of top-1; None where it is not known.
        macs_ratio: Multiply-adds over the original's; told with latencies.
    """
    change, kind = reading.ratio, "ratio"
    if reading.metric in ACCURACIES:
        change, kind = None, "difference"
        if reading.metric == "top1" and drop is not None:
            change = Spread(value=-drop.value, low=-drop.high, high=-drop.low)
    place = (reading.split and f"{reading.split} split", reading.device, reading.statistic)
    unit = METRICS[reading.metric].unit
    return MetricRow(
        metric=reading.metric,
        unit="" if unit == "1" else unit,
        baseline=baseline or _by_ratio(reading),
        result=interval_of(reading),
        change=None
        if change is None
        else Interval(value=change.value, low=change.low, high=change.high),
        change_kind=kind,
        conditions=", ".join(part for part in place if part),
        macs_ratio=macs_ratio if reading.metric == "latency_ms" else None,
    )


def interval_of(reading: Reading) -> Interval:
    """Return a reading's value; without ends where it is exact."""
    if reading.low == reading.high:
        return Interval(value=reading.value, n=reading.n)
    return Interval(value=reading.value, low=reading.low, high=reading.high, n=reading.n)


def _by_ratio(reading: Reading) -> Interval | None:
    if reading.ratio is None or reading.ratio.value == 0:
        return None
    return Interval(value=reading.value / reading.ratio.value, n=reading.n)
