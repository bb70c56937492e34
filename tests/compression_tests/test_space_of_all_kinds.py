"""The laws of spaces that hold every kind of knob."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.decisions import DropBlock, QuantizeWeights, Share
from compression.errors import PlanInvalid
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.space import Knob, PlanSpace
from search.history import plan_count
from tests.builders import surveyed_resnet

KEEP = Knob(site="b1.conv1", field="keep_channels", choices=(4, 8), ordered=True)
OTHER = Knob(site="c", field="keep_channels", choices=(2, 4, 8), ordered=True)
SELECTOR = Knob(site=MODEL_SITE, field="selector", choices=("l2", "fpgm"), ordered=False)
DROP = Knob(site="b1", field="drop_block", choices=("none", "drop"), ordered=False)
SPLIT = Knob(
    site="b1.conv2", field="factorize", choices=("none", "spatial 0.5", "cp 0.25"), ordered=False
)
ZEROS = Knob(site=MODEL_SITE, field="sparsify", choices=("none", "0.5", "0.8"), ordered=False)
BITS = Knob(site=MODEL_SITE, field="quantize_weights", choices=("none", "4"), ordered=False)
CODES = Knob(site=MODEL_SITE, field="share", choices=("none", "16", "256 9"), ordered=False)
PRECISION = Knob(site=MODEL_SITE, field="precision", choices=("none", "int8"), ordered=False)
KNOBS = (KEEP, OTHER, SELECTOR, DROP, SPLIT, ZEROS, BITS, CODES, PRECISION)
SPACES = st.lists(st.sampled_from(KNOBS), min_size=1, unique=True).map(
    lambda knobs: PlanSpace(tuple(sorted(knobs, key=KNOBS.index)))
)


def points(space: PlanSpace) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(knob.choices)) for knob in space.knobs)))


@settings(deadline=None)
@given(SPACES, st.data())
def test_points_and_plans_stand_for_each_other(space: PlanSpace, data: st.DataObject) -> None:
    point = data.draw(st.sampled_from(points(space)))
    plan = space.decode(point)
    assert space.contains(plan)
    assert space.encode(plan) == space.canonical(point)
    assert space.decode(space.encode(plan)) == plan
    assert space.decode(space.dense()) == Plan()
    assert Plan.from_json(plan.to_json()) == plan


@settings(deadline=None, max_examples=40)
@given(SPACES)
def test_plans_are_counted(space: PlanSpace) -> None:
    different = {space.decode(point) for point in points(space)}
    assert plan_count(space) == len(different)
    assert len({space.canonical(point) for point in points(space)}) == len(different)


def test_nothing_is_decided_inside_a_dropped_block() -> None:
    space = PlanSpace((KEEP, DROP, SPLIT))
    assert space.decode((0, 1, 1)) == Plan.of({"b1": [DropBlock()]})
    assert space.smallest() == (1, 1, 0)


def test_sharing_takes_the_place_of_low_bits() -> None:
    space = PlanSpace((BITS, CODES))
    assert space.decode((1, 1)) == Plan.of({MODEL_SITE: [Share(entries=16)]})
    assert space.decode((1, 0)) == Plan.of({MODEL_SITE: [QuantizeWeights(bits=4)]})


def test_vectors_of_weights_take_the_place_of_zeros() -> None:
    space = PlanSpace((ZEROS, CODES))
    assert space.decode((1, 2)) == Plan.of({MODEL_SITE: [Share(entries=256, block=9)]})
    assert len(list(space.decode((1, 1)))) == 2


def test_a_choice_that_stands_for_nothing_is_refused() -> None:
    with pytest.raises(PlanInvalid, match="'half' is not a sparsity"):
        Knob(site=MODEL_SITE, field="sparsify", choices=("none", "half"), ordered=False)


def test_a_job_is_offered_what_fits_each_site() -> None:
    _, survey = surveyed_resnet(20)
    allow = (
        "drop_block",
        "prune_channels",
        "factorize",
        "sparsify",
        "quantize_weights",
        "share",
        "quantize",
    )
    space = resolve_space(
        survey.sites, Methods(allow=allow, freeze=("layer1.1.conv2",)), survey.costs
    )
    fields = {(knob.field, knob.site): knob.choices for knob in space.knobs}
    assert fields["drop_block", "layer3.2"] == ("none", "drop")
    # A block with a frozen layer stays.
    assert ("drop_block", "layer1.1") not in fields
    assert fields["factorize", "layer3.2.conv2"] == ("none", "spatial 0.5", "spatial 0.25")
    assert fields["factorize", "linear"] == ("none", "svd 0.5", "svd 0.25")
    assert fields["sparsify", MODEL_SITE] == ("none", "0.5", "0.7", "0.8", "0.9")
    assert fields["share", MODEL_SITE] == ("none", "64", "16", "256 9")
    smallest = space.decode(space.smallest())
    assert survey.costs.cost(smallest).macs < 0.2 * survey.costs.cost(Plan()).macs
