"""Trials of a job that bounds latency on a device that exists on paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from compression.decisions import Quantize
from compression.plan import Plan
from search.measurement import Infeasible, Measured
from search.objective import Constraint
from search.trial import Fidelity
from search.virtual_target import VIRTUAL_TARGETS
from tests.workers_tests.small_job import SMALL_JOB, widths, work
from workers.context import JobContext
from workers.evaluate import evaluate
from workers.meters.virtual import DoesNotFit, virtual_readings
from workers.quiet import QuietNode
from workers.store import FolderStore

CHIP = "virtual/cortex-m7"


def context_in(folder: Path, *devices: str) -> JobContext:
    bounds = tuple(
        Constraint(metric="latency_ms", at_most=1.0, device=name, statistic="p95")
        for name in devices
    )
    spec = dataclasses.replace(
        SMALL_JOB,
        constraints=bounds,
        devices=(*SMALL_JOB.devices, *(VIRTUAL_TARGETS[name] for name in devices)),
    )
    quiet = folder / "quiet"
    quiet.mkdir()
    return JobContext.build(spec, FolderStore(folder / "blobs"), QuietNode(quiet))


def int8(plan: Plan) -> Plan:
    return plan.with_decision("model", Quantize())


@pytest.mark.slow
def test_a_proxy_has_labelled_estimates_that_decide_the_bound(tmp_path: Path) -> None:
    context = context_in(tmp_path, CHIP)
    (bound,) = context.spec.constraints
    dense, small = (
        evaluate(work(plan, Fidelity.PROXY), context, lambda data: None).outcome
        for plan in (Plan(), int8(widths(2)))
    )
    assert isinstance(dense, Measured)
    assert isinstance(small, Measured)
    reading = bound.reading(small.measurement)
    assert reading is not None
    assert reading.estimated
    assert reading.ratio is not None
    assert reading.ratio.value < 1
    expected = reading.value - 1.0
    assert bound.violation(small.measurement, dense.measurement) == pytest.approx(expected)
    others = [r for r in small.measurement.readings if r.device != CHIP]
    assert others
    assert not any(r.estimated for r in others)


@pytest.mark.slow
def test_a_plan_that_the_chip_cannot_run_is_infeasible_and_says_why(tmp_path: Path) -> None:
    context = context_in(tmp_path, CHIP)
    outcome = evaluate(work(widths(2), Fidelity.PROXY), context, lambda data: None).outcome
    assert isinstance(outcome, Infeasible)
    assert f"{CHIP} computes in 8-bit integers only" in outcome.reason


def test_the_dense_model_is_estimated_where_it_could_not_run(tmp_path: Path) -> None:
    context = context_in(tmp_path, CHIP)
    readings = virtual_readings(Plan(), context)
    ratios = {r.ratio.value for r in readings if r.ratio is not None}
    assert ratios == {1.0}
    assert {r.statistic for r in readings} == {"p50", "p95"}
    with pytest.raises(DoesNotFit, match="allow `quantize`"):
        virtual_readings(widths(2), context)


def test_a_job_without_virtual_targets_has_no_estimates(tmp_path: Path) -> None:
    assert virtual_readings(widths(2), context_in(tmp_path)) == []
