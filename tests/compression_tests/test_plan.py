from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.decisions import (
    Decision,
    PruneChannels,
    Quantize,
    decision_from_json,
    decision_to_json,
)
from compression.errors import PlanInvalid
from compression.plan import Plan, canonical_json
from compression.site import MODEL_SITE

SITES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
PRUNE = st.builds(
    PruneChannels,
    keep_channels=st.integers(1, 4096),
    selector=st.sampled_from(["l1", "l2", "bn_scale", "taylor"]),
)
QUANTIZE = st.builds(
    Quantize,
    calibrator=st.sampled_from(["minmax", "percentile", "entropy"]),
    keep_float=st.lists(SITES, max_size=4).map(tuple),
)
PLANS = st.dictionaries(
    SITES, st.tuples(PRUNE) | st.tuples(QUANTIZE) | st.tuples(PRUNE, QUANTIZE), max_size=6
).map(Plan.of)


@given(PLANS)
def test_a_plan_survives_json(plan: Plan) -> None:
    text = canonical_json(plan.to_json())
    assert Plan.from_json(json.loads(text)) == plan
    assert text.isascii()
    assert ": " not in text.replace('": ', "")


@given(PLANS, PLANS)
def test_digests_are_equal_exactly_where_plans_are(first: Plan, second: Plan) -> None:
    assert (first.digest == second.digest) == (first == second)
    assert Plan.from_json(first.to_json()).digest == first.digest


@given(PLANS, st.randoms(use_true_random=False))
def test_the_order_of_building_does_not_matter(plan: Plan, random: Any) -> None:
    decisions = [(site, list(ds)) for site, ds in plan.decisions]
    random.shuffle(decisions)
    for _, ds in decisions:
        random.shuffle(ds)
    assert Plan.of(dict(decisions)) == plan


def test_the_digest_is_the_one_of_yesterday() -> None:
    plan = Plan.of(
        {
            "layer1.0.conv1": [PruneChannels(keep_channels=8)],
            "layer1.1.conv1": [PruneChannels(keep_channels=4, selector="taylor")],
            MODEL_SITE: [Quantize(keep_float=("linear", "conv1"))],
        }
    )
    assert canonical_json(plan.to_json()) == (
        '{"sites":{"layer1.0.conv1":[{"keep_channels":8,"kind":"prune_channels","selector":"l2"}],'
        '"layer1.1.conv1":[{"keep_channels":4,"kind":"prune_channels","selector":"taylor"}],'
        '"model":[{"activation_bits":8,"calibrator":"minmax","keep_float":["conv1","linear"],'
        '"kind":"quantize","weight_bits":8}]},"version":1}'
    )
    assert plan.digest == "1726b5ba889ec8ff83c07aff30628fa1cc83291de3dc87147d8522f717cbbabc"
    assert Plan().digest == "bc598a2a238c01aac3025e8b064f08d47a7485a98e14c3e2a6da29e7cbb88e6b"


@given(PRUNE | QUANTIZE)
def test_a_decision_survives_json(decision: Decision) -> None:
    data = json.loads(json.dumps(decision_to_json(decision)))
    assert decision_from_json(data) == decision


@given(PLANS, SITES, PRUNE)
def test_with_decision_replaces_the_one_of_its_kind_and_nothing_else(
    plan: Plan, site: str, decision: PruneChannels
) -> None:
    changed = plan.with_decision(site, decision)
    assert changed.prune_channels() == {**plan.prune_channels(), site: decision}
    others = [(s, d) for s, d in plan if (s, d.kind) != (site, decision.kind)]
    assert sorted(others, key=repr) == sorted(
        ((s, d) for s, d in changed if (s, d) != (site, decision)), key=repr
    )


def test_float_layers_have_one_order() -> None:
    assert Quantize(keep_float=("b", "a")) == Quantize(keep_float=("a", "b"))


def test_two_decisions_of_one_kind_are_refused() -> None:
    twice = [PruneChannels(keep_channels=1), PruneChannels(keep_channels=2)]
    with pytest.raises(PlanInvalid, match="Site 'a' has two decisions of one kind"):
        Plan.of({"a": twice})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sites": {}}, "version is None"),
        ({"version": 2, "sites": {}}, "version is 2; 1 is known"),
        ({"version": 1}, "no 'sites'"),
        ({"version": 1, "sites": {"a": [{"kind": "melt"}]}}, "kind 'melt'.*prune_channels"),
        ({"version": 1, "sites": {"a": [{"kind": "prune_channels"}]}}, "keep_channels"),
        (
            {"version": 1, "sites": {"a": [{"kind": "prune_channels", "keep_channels": 0}]}},
            "keep_channels is 0; at least 1",
        ),
        (
            {"version": 1, "sites": {"a": [{"kind": "quantize", "weight_bits": 4}]}},
            "4/8 bits; 8/8 exists",
        ),
        ({"version": 1, "sites": {"a": [{"kind": "quantize", "colour": 1}]}}, "colour"),
    ],
)
def test_damaged_plans_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanInvalid, match=message):
        Plan.from_json(data)


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})
