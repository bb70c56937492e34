from __future__ import annotations

import json
import math
from typing import Any

import pytest

from search.errors import ProblemInvalid
from search.measurement import (
    Failed,
    Infeasible,
    Interval,
    Measured,
    Measurement,
    Outcome,
    Reading,
    outcome_from_json,
    outcome_to_json,
)
from tests.synthetic import Net

BASE: dict[str, Any] = {"metric": "top1", "value": 0.5, "low": 0.4, "high": 0.6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "speed"}, "Unknown metric 'speed'"),
        ({"value": math.nan}, "not finite"),
        ({"high": math.inf}, "not finite"),
        ({"low": 0.55}, r"outside \[0.55, 0.6\]"),
        ({"metric": "latency_ms"}, "needs a device"),
        ({"metric": "latency_ms", "device": "a"}, "needs a device and a statistic"),
    ],
)
def test_readings_refuse_what_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemInvalid, match=message):
        Reading(**{**BASE, **change})


def test_exact_readings_have_no_spread_and_an_exact_ratio() -> None:
    reading = Reading.exact("macs", 30.0, 40.0)
    assert (reading.low, reading.value, reading.high, reading.n) == (30.0, 30.0, 30.0, 1)
    assert reading.ratio == Interval(value=0.75, low=0.75, high=0.75)
    assert Reading.exact("macs", 30.0).ratio is None
    assert reading.unit == "multiply-adds"


def test_one_reading_per_key() -> None:
    with pytest.raises(ProblemInvalid, match="two readings of one key"):
        Measurement((Reading(**BASE), Reading(**BASE)))


def test_readings_are_found_by_metric_device_and_statistic() -> None:
    fast, slow = (
        Reading(metric="latency_ms", value=v, low=v, high=v, device="a", statistic=s)
        for v, s in ((1.0, "p50"), (2.0, "p95"))
    )
    measurement = Measurement((fast, slow, Reading(**BASE)))
    assert measurement.get("latency_ms", "a", "p95") is slow
    assert measurement.get("latency_ms", "b", "p95") is None
    assert measurement.get("latency_ms") is None
    assert measurement.get("top1") == Reading(**BASE)


@pytest.mark.parametrize(
    "outcome",
    [
        Measured(Net().measurement(Net().space.decode(Net().space.smallest()))),
        Infeasible("too thin"),
        Infeasible("too slow", foretold=True),
        Failed("lost", retryable=True),
    ],
)
def test_outcomes_survive_json(outcome: Outcome) -> None:
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(outcome)))) == outcome


def test_unknown_outcomes_are_refused() -> None:
    with pytest.raises(ProblemInvalid, match="'lost'"):
        outcome_from_json({"kind": "lost"})
