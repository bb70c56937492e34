"""The reachable region holds every plan, and its ends are plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.methods import Methods, resolve_space
from search.measurement import Measurement
from search.objective import Constraint
from service.bounds import arithmetic_values, contradiction_faults, regions, verdict
from service.dry_run import known_baseline
from tests.service_tests.api_world import SURVEY

SPACE = resolve_space(SURVEY.sites, Methods())
REGION = regions(SPACE, SURVEY.costs)
BASELINE = known_baseline(SURVEY)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_plan_lies_in_the_region(seed: int) -> None:
    plan = SPACE.decode(SPACE.sample(np.random.default_rng(seed)))
    cost = SURVEY.costs.cost(plan)
    for name, value in {**arithmetic_values(cost), "weight_bytes": cost.weight_bytes}.items():
        assert REGION[name].low <= value <= REGION[name].high


@given(st.floats(0.001, 1.2))
@settings(max_examples=60, deadline=None)
def test_a_bound_is_reachable_exactly_where_the_smallest_plan_holds_it(share: float) -> None:
    constraint = Constraint(metric="macs", at_most=share, relative_to="baseline")
    smallest = arithmetic_values(SURVEY.costs.cost(SPACE.decode(SPACE.smallest())))["macs"]
    dense = REGION["macs"].high
    expected = "yes" if smallest <= share * dense else "no"
    assert verdict(constraint, REGION, BASELINE).reachable == expected


def test_the_end_itself_is_reachable_as_a_share() -> None:
    for metric in ("macs", "flops", "params"):
        share = REGION[metric].low / REGION[metric].high
        constraint = Constraint(metric=metric, at_most=share, relative_to="baseline")
        assert verdict(constraint, REGION, BASELINE).reachable == "yes"


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_two_bounds_contradict_exactly_where_no_value_is_both(most: float, least: float) -> None:
    pair = (Constraint(metric="top1", at_most=most), Constraint(metric="top1", at_least=least))
    assert bool(contradiction_faults(pair, Measurement(()))) == (most < least)


def test_bounds_of_different_kinds_are_not_compared_before_the_baseline_is_known() -> None:
    pair = (
        Constraint(metric="top1", at_most=0.5),
        Constraint(metric="top1", at_least=0.99, relative_to="baseline"),
    )
    assert contradiction_faults(pair, BASELINE) == []


@pytest.mark.parametrize(
    ("constraint", "reachable"),
    [
        (Constraint(metric="top1", at_least=0.0, relative_to="baseline_difference"), "yes"),
        (Constraint(metric="top1", at_least=0.01, relative_to="baseline_difference"), "unknown"),
        (Constraint(metric="runtime_bytes", at_most=1.0, relative_to="baseline"), "yes"),
        (Constraint(metric="runtime_bytes", at_most=0.9, relative_to="baseline"), "unknown"),
        (Constraint(metric="macs", at_least=1.0, relative_to="baseline"), "yes"),
    ],
)
def test_what_the_dense_model_meets_is_reachable(constraint: Constraint, reachable: str) -> None:
    assert verdict(constraint, REGION, BASELINE).reachable == reachable
