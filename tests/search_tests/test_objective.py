from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search.errors import ProblemInvalid
from search.measurement import Interval, Measurement, Reading
from search.metric import METRICS
from search.objective import (
    Constraint,
    Objective,
    constraint_from_json,
    feasible,
    objective_from_json,
)

values = st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-6)
positive = st.floats(1e-3, 1e9)


def of(metric: str, value: float, baseline: float | None = None) -> Measurement:
    return Measurement((Reading.exact(metric, value, baseline),))


def timed(value: float, ratio: float) -> Measurement:
    reading = Reading(
        metric="latency_ms", value=value, low=value, high=value, device="a", statistic="p50",
        ratio=Interval(value=ratio, low=ratio, high=ratio),
    )  # fmt: skip
    return Measurement((reading,))


@given(values, values)
def test_violation_is_not_positive_exactly_when_an_upper_bound_holds(
    value: float, bound: float
) -> None:
    constraint = Constraint(metric="params", at_most=bound)
    violation = constraint.violation(of("params", value), of("params", 1.0))
    assert (violation <= 0) == (value <= bound)


@given(values, values)
def test_violation_is_not_positive_exactly_when_a_lower_bound_holds(
    value: float, bound: float
) -> None:
    constraint = Constraint(metric="top1", at_least=bound)
    violation = constraint.violation(of("top1", value), of("top1", 1.0))
    assert (violation <= 0) == (value >= bound)


@given(positive, positive, st.floats(0.01, 10))
def test_relative_bounds_are_multiples_of_the_baseline(
    value: float, baseline: float, bound: float
) -> None:
    constraint = Constraint(metric="macs", at_most=bound, relative_to="baseline")
    dense = of("macs", baseline)
    assert constraint.limit(dense) == bound * baseline
    share = value / baseline
    assume(abs(share - bound) > 1e-9 * bound)
    violation = constraint.violation(of("macs", value), dense)
    assert (violation <= 0) == (share <= bound)
    assert violation == pytest.approx((share - bound) / bound)


def test_the_ratio_measured_beside_it_decides() -> None:
    constraint = Constraint(
        metric="latency_ms", at_most=0.5, relative_to="baseline", device="a", statistic="p50"
    )
    dense = timed(10.0, 1.0)
    # The machine was slow: 7 ms against 10 ms then, but 0.4 of the baseline timed beside it.
    assert constraint.violation(timed(7.0, 0.4), dense) == pytest.approx(-0.2)
    assert constraint.violation(timed(4.0, 0.6), dense) == pytest.approx(0.2)


def test_differences_are_added_to_the_baseline() -> None:
    floor = Constraint(metric="top1", at_least=-0.01, relative_to="baseline_difference")
    dense = of("top1", 0.9)
    assert floor.limit(dense) == pytest.approx(0.89)
    assert floor.violation(of("top1", 0.895), dense) < 0 < floor.violation(of("top1", 0.88), dense)


def test_a_bound_of_zero_has_a_violation() -> None:
    constraint = Constraint(metric="params", at_most=0.0)
    assert constraint.violation(of("params", 3.0), of("params", 1.0)) == 3.0


def test_feasible_is_all() -> None:
    both = (Constraint(metric="params", at_most=2.0), Constraint(metric="params", at_least=1.0))
    dense = of("params", 1.0)
    assert feasible(of("params", 1.5), dense, both)
    assert not feasible(of("params", 2.5), dense, both)
    assert feasible(of("params", 2.5), dense, ())


def test_losses_are_minimised() -> None:
    assert Objective(metric="top1", direction="maximize").loss(of("top1", 0.9)) == -0.9
    assert Objective(metric="macs", direction="minimize").loss(of("macs", 5.0)) == 5.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "speed", "at_most": 1}, "Unknown metric 'speed'"),
        ({"metric": "latency_ms", "at_most": 1}, "name the device"),
        (
            {"metric": "latency_ms", "at_most": 1, "device": "a", "statistic": "max"},
            "one of p50, p95, p99",
        ),
        ({"metric": "macs", "at_most": 1, "device": "a"}, "not timed"),
        ({"metric": "macs"}, "exactly one"),
        ({"metric": "macs", "at_most": 1, "at_least": 0}, "exactly one"),
    ],
)
def test_refuses_contradictions(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ProblemInvalid, match=message):
        Constraint(**fields)  # type: ignore[arg-type]


def test_missing_readings_are_named() -> None:
    constraint = Constraint(metric="params", at_most=1.0, relative_to="baseline")
    with pytest.raises(ProblemInvalid, match="No reading of params"):
        constraint.violation(of("macs", 1.0), of("params", 1.0))
    with pytest.raises(ProblemInvalid, match="baseline of params"):
        constraint.violation(of("params", 1.0), of("macs", 1.0))
    with pytest.raises(ProblemInvalid, match="No reading of top1"):
        Objective(metric="top1", direction="maximize").loss(of("macs", 1.0))


def test_json_round_trips() -> None:
    constraint = Constraint(
        metric="latency_ms", at_most=0.5, relative_to="baseline", device="a", statistic="p95"
    )
    objective = Objective(metric="top1", direction="maximize")
    assert constraint_from_json(constraint.to_json()) == constraint
    assert objective_from_json(objective.to_json()) == objective
    assert constraint.key == "latency_ms@a:p95"


def test_every_metric_is_named_after_itself_and_has_a_unit() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.unit
        assert metric.summary.endswith(".")
        assert not (metric.timed and metric.by_cost_table)
    assert {m for m in METRICS if METRICS[m].timed} == {
        "latency_ms",
        "latency_hot_ms",
        "throughput",
        "load_ms",
        "first_inference_ms",
        "peak_memory_bytes",
        "energy_mj",
    }
    assert {m for m in METRICS if METRICS[m].by_cost_table} == {"macs", "flops", "params"}
