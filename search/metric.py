"""The closed list of quantities that are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

Direction = Literal["maximize", "minimize"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One quantity of a deployed model.

    Attributes:
        name: Used in constraints, readings and the API.
        unit: Physical unit, or `1` for a share.
        direction: Which way is better.
        timed: True when the value is true for one device only.
        by_cost_table: True when the value of a plan is exact arithmetic, known before any trial.
        summary: One sentence.
    """

    name: str
    unit: str
    direction: Direction
    summary: str
    timed: bool = False
    by_cost_table: bool = False


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="top1", unit="1", direction="maximize", summary="Share classified right."),
        Metric(
            name="top5",
            unit="1",
            direction="maximize",
            summary="Share whose label is in the best 5.",
        ),
        Metric(
            name="agreement",
            unit="1",
            direction="maximize",
            summary="Share on which it decides like the original model; needs no labels.",
        ),
        Metric(
            name="latency_ms",
            unit="ms",
            direction="minimize",
            timed=True,
            summary="Time of one inference of the device's batch, in turns with the baseline.",
        ),
        Metric(
            name="latency_hot_ms",
            unit="ms",
            direction="minimize",
            timed=True,
            summary="Time of one inference of the device's batch, many times in a row.",
        ),
        Metric(
            name="throughput",
            unit="1/s",
            direction="maximize",
            timed=True,
            summary="Inputs per second: 1000 x batch / latency_ms.",
        ),
        Metric(
            name="load_ms",
            unit="ms",
            direction="minimize",
            timed=True,
            summary="Time in which the runtime loads the file, in a fresh process.",
        ),
        Metric(
            name="first_inference_ms",
            unit="ms",
            direction="minimize",
            timed=True,
            summary="Time of the first inference after loading, in a fresh process.",
        ),
        Metric(
            name="peak_memory_bytes",
            unit="bytes",
            direction="minimize",
            timed=True,
            summary="Most memory that loading and running add to a process on a named device.",
        ),
        Metric(
            name="energy_mj",
            unit="mJ",
            direction="minimize",
            timed=True,
            summary="Energy of the processor package during one inference; where it has a counter.",
        ),
        Metric(
            name="macs",
            unit="multiply-adds",
            direction="minimize",
            by_cost_table=True,
            summary="Multiply-adds of convolutions and linear layers for one input.",
        ),
        Metric(
            name="flops",
            unit="floating-point operations",
            direction="minimize",
            by_cost_table=True,
            summary="2 x MACs.",
        ),
        Metric(
            name="params",
            unit="parameters",
            direction="minimize",
            by_cost_table=True,
            summary="Trainable parameters.",
        ),
        Metric(
            name="runtime_bytes",
            unit="bytes",
            direction="minimize",
            summary="Size of the file that the runtime loads.",
        ),
        Metric(
            name="resident_bytes",
            unit="bytes",
            direction="minimize",
            summary="Memory that loading the model adds to a process.",
        ),
        Metric(
            name="download_bytes",
            unit="bytes",
            direction="minimize",
            summary="Size of the entropy-coded container.",
        ),
    )
}
STATISTICS = ("p50", "p95", "p99")
"""What a reading of a timed metric may be of its values."""

ACCURACIES = ("top1", "top5", "agreement")
