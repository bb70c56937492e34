from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.decisions import PruneChannels, Quantize
from compression.errors import PlanInvalid
from compression.methods import MAX_LEVELS, Methods, keep_choices, resolve_space
from compression.plan import Plan
from compression.site import MODEL_SITE, Site
from compression.space import Knob, PlanSpace

METHODS = st.builds(
    Methods,
    channel_multiple=st.integers(1, 64),
    min_keep_ratio=st.floats(0.01, 1.0),
    selectors=st.sampled_from([("l2",), ("l1", "l2"), ("taylor",), ("l2", "bn_scale", "l1")]),
)
WIDTHS = st.lists(st.integers(1, 600), max_size=5)
SEEDS = st.integers(0, 2**32 - 1)


def sites(widths: list[int]) -> list[Site]:
    channels = [
        Site(name=f"conv{i}", kind="channels", channels=width, macs=9, params=9)
        for i, width in enumerate(widths)
    ]
    return [*channels, Site(name=MODEL_SITE, kind="model", channels=0, macs=9, params=9)]


SPACES = st.builds(lambda widths, methods: resolve_space(sites(widths), methods), WIDTHS, METHODS)


def test_the_nearest_choice_of_a_tie_is_the_first() -> None:
    knob = Knob(site="conv", field="keep_channels", choices=(4, 8, 16), ordered=True)
    assert [knob.nearest(value) for value in (0.0, 6.0, 6.1, 12.0, 99.0)] == [0, 0, 1, 1, 2]


@given(SPACES, SEEDS)
def test_a_space_contains_what_it_samples(space: PlanSpace, seed: int) -> None:
    point = space.sample(np.random.default_rng(seed))
    plan = space.decode(point)
    assert space.contains(plan)
    assert space.decode(space.encode(plan)) == plan


@given(SPACES, SEEDS)
def test_encoding_gives_the_point_back_or_a_lower_selector(space: PlanSpace, seed: int) -> None:
    point = space.sample(np.random.default_rng(seed))
    encoded = space.encode(space.decode(point))
    assert encoded <= point
    differing = [k.field for k, a, b in zip(space.knobs, point, encoded, strict=True) if a != b]
    assert set(differing) <= {"selector"}
    if differing:
        assert not space.decode(point).prune_channels()


@given(SPACES, SEEDS)
def test_the_unit_cube_and_points_agree(space: PlanSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    point = space.sample(rng)
    x = space.to_unit(point)
    assert x.shape == (len(space.knobs),)
    assert ((x >= 0) & (x <= 1)).all()
    assert space.from_unit(x) == point
    # Any x, inside or out, is a point of the space.
    assert space.contains(space.decode(space.from_unit(rng.normal(0.5, 2.0, len(space.knobs)))))


@given(SPACES)
def test_the_dense_plan_is_always_contained(space: PlanSpace) -> None:
    assert space.decode(space.dense()) == Plan()
    assert space.encode(Plan()) == space.dense()


@given(SPACES, SEEDS)
def test_no_point_keeps_less_than_the_smallest(space: PlanSpace, seed: int) -> None:
    point = space.sample(np.random.default_rng(seed))
    fewest = space.decode(space.smallest()).prune_channels()
    for site, decision in space.decode(point).prune_channels().items():
        assert fewest[site].keep_channels <= decision.keep_channels


@given(SPACES)
def test_a_space_survives_json(space: PlanSpace) -> None:
    assert PlanSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


@given(SPACES, st.floats(0.01, 1.0))
def test_uniform_takes_the_nearest_choice_everywhere(space: PlanSpace, keep_ratio: float) -> None:
    point = space.uniform(keep_ratio)
    for knob, index in zip(space.knobs, point, strict=True):
        if knob.field == "keep_channels":
            widths = [int(choice) for choice in knob.choices]
            target = keep_ratio * widths[-1]
            assert abs(widths[index] - target) == min(abs(w - target) for w in widths)


@given(st.integers(1, 4096), METHODS)
def test_keep_choices_ascend_to_all_channels(channels: int, methods: Methods) -> None:
    choices = keep_choices(channels, methods)
    assert choices[-1] == channels
    assert list(choices) == sorted(set(choices))
    assert len(choices) <= MAX_LEVELS
    assert all(keep >= methods.min_keep_ratio * channels for keep in choices)


@given(st.integers(1, 4096), st.integers(0, 6))
def test_keep_choices_are_multiples_or_of_a_smaller_power_of_two(
    channels: int, exponent: int
) -> None:
    choices = keep_choices(channels, Methods(channel_multiple=2**exponent))
    # The largest power of two of which the site is at least two wide.
    widest = max(0, math.floor(math.log2(channels)) - 1)
    assert all(keep % 2 ** min(exponent, widest) == 0 for keep in choices[:-1])
    assert len(choices) > 1 or channels == 1


def test_keep_choices_of_common_widths() -> None:
    assert keep_choices(64, Methods()) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert keep_choices(16, Methods()) == (8, 16)
    assert keep_choices(12, Methods()) == (4, 8, 12)
    assert keep_choices(1, Methods()) == (1,)
    assert keep_choices(64, Methods(min_keep_ratio=0.5)) == (32, 40, 48, 56, 64)
    assert keep_choices(64, Methods(min_keep_ratio=1.0)) == (64,)


SPACE = resolve_space(sites([16, 64]), Methods(selectors=("l1", "l2")))


def test_the_resolved_knobs() -> None:
    assert [knob.name for knob in SPACE.knobs] == [
        "conv0:keep_channels",
        "conv1:keep_channels",
        "model:selector",
        "model:precision",
    ]
    assert SPACE.size == 2 * 8 * 2 * 2
    assert SPACE.decode((0, 3, 0, 1)) == Plan.of(
        {
            "conv0": [PruneChannels(keep_channels=8, selector="l1")],
            "conv1": [PruneChannels(keep_channels=32, selector="l1")],
            MODEL_SITE: [Quantize()],
        }
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"conv0": PruneChannels(keep_channels=9)}, "'conv0:keep_channels': 9 is not one of"),
        ({"conv9": PruneChannels(keep_channels=8)}, "decides .'conv9:keep_channels'"),
        ({"conv0": PruneChannels(keep_channels=8, selector="taylor")}, "'taylor' is not one of"),
        ({"conv0": PruneChannels(keep_channels=16)}, "'conv0'.*16.*all"),
        ({MODEL_SITE: Quantize(calibrator="entropy")}, "'entropy'"),
        ({"conv0": Quantize()}, "conv0:precision"),
    ],
)
def test_plans_outside_the_space_are_named(
    plan: dict[str, PruneChannels | Quantize], message: str
) -> None:
    outside = Plan.of({site: [decision] for site, decision in plan.items()})
    assert not SPACE.contains(outside)
    with pytest.raises(PlanInvalid, match=message):
        SPACE.encode(outside)


def test_plans_that_mix_selectors_are_outside() -> None:
    plan = Plan.of(
        {
            "conv0": [PruneChannels(keep_channels=8, selector="l1")],
            "conv1": [PruneChannels(keep_channels=8, selector="l2")],
        }
    )
    with pytest.raises(PlanInvalid, match=r"mixes selectors \['l1', 'l2'\]"):
        SPACE.encode(plan)


def test_float_layers_are_no_matter_of_the_space() -> None:
    plan = Plan.of({MODEL_SITE: [Quantize(keep_float=("conv0",))]})
    assert SPACE.decode(SPACE.encode(plan)) == Plan.of({MODEL_SITE: [Quantize()]})


@pytest.mark.parametrize("point", [(0, 0, 0), (0, 0, 0, 2), (-1, 0, 0, 0)])
def test_points_outside_the_space_are_refused(point: tuple[int, ...]) -> None:
    with pytest.raises(PlanInvalid, match=r"coordinates|outside"):
        SPACE.decode(point)


def test_frozen_sites_and_members_have_no_knob() -> None:
    first, second, model = sites([64, 64])
    stream = Site(
        name="conv2",
        kind="channels",
        channels=64,
        macs=1,
        params=1,
        members=("conv2", "norm"),
        frozen="its channels pass through padding",
    )
    space = resolve_space([first, second, stream, model], Methods(freeze=("conv1",)))
    assert [knob.site for knob in space.knobs] == ["conv0", MODEL_SITE]
    free = Site(name="conv3", kind="channels", channels=64, macs=1, params=1, members=("norm",))
    assert resolve_space([free, model], Methods(freeze=("norm",))).size == 2


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (Methods(freeze=("conv7",)), r"\['conv7'\], which the model does not have"),
        (Methods(allow=("prune_channels",), freeze=("conv0", "conv1")), "Nothing is left"),
        (Methods(allow=("quantize",), freeze=(MODEL_SITE,)), "Nothing is left"),
    ],
)
def test_contradictory_methods_are_refused(methods: Methods, message: str) -> None:
    with pytest.raises(PlanInvalid, match=message):
        resolve_space(sites([64, 64]), methods)


def test_methods_out_of_range_are_refused() -> None:
    with pytest.raises(PlanInvalid, match=r"methods.allow is \['melt'\]; choose from"):
        Methods(allow=("melt",))
    with pytest.raises(PlanInvalid, match=r"methods.selectors is \[\]"):
        Methods(selectors=())
    with pytest.raises(PlanInvalid, match=r"channel_multiple is 65; 1..64"):
        Methods(channel_multiple=65)
    with pytest.raises(PlanInvalid, match="min_keep_ratio is 0"):
        Methods(min_keep_ratio=0.0)


def test_knobs_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(PlanInvalid, match="unknown field 'depth'"):
        Knob(site="a", field="depth", choices=(1,), ordered=True)
    with pytest.raises(PlanInvalid, match="empty or repeat"):
        Knob(site="a", field="keep_channels", choices=(1, 1), ordered=True)
    knob = Knob(site="a", field="keep_channels", choices=(1, 2), ordered=True)
    with pytest.raises(PlanInvalid, match="two knobs of one name"):
        PlanSpace((knob, knob))
