from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compression.apply import Applied, ApplyContext, apply, replay
from compression.certificate import certify
from compression.codegen import generate
from compression.cost import CostTable
from compression.counting import count_macs
from compression.decisions import Decision, Factorize, MergePool, PruneChannels
from compression.errors import NotCertified, PlanInvalid
from compression.export import export_onnx, parity
from compression.methods import Methods, resolve_space
from compression.patch import Patch
from compression.plan import Plan
from compression.pools import find_pools
from compression.primitives.merge_pool import PoolMerging
from compression.site import Site
from compression.survey import survey
from tests.builders import seeded
from tests.contracts.primitive import PrimitiveContract

SHAPE = (3, 16, 16)


class Pooled(nn.Module):
    """Two stages with a pool each: one behind BatchNorm and ReLU, one average."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU(inplace=in_place)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.pool2 = nn.AvgPool2d(2)
        self.fc = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        x = self.pool2(self.conv2(x))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def context_of(model: nn.Module) -> ApplyContext:
    images = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(1))
    return ApplyContext.build(model, survey(model, SHAPE), SHAPE, calibration=[images])


@pytest.fixture(scope="module")
def context() -> ApplyContext:
    model = seeded(Pooled)
    with torch.no_grad():
        model.get_submodule("bn1").get_parameter("weight")[::3] *= -1
    return context_of(model)


class TestPoolMerging(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> PoolMerging:
        return PoolMerging()

    @pytest.fixture
    def site(self, context: ApplyContext) -> Site:
        return next(s for s in context.survey.sites if (s.kind, s.name) == ("layer", "conv1"))

    @pytest.fixture
    def other_site(self, context: ApplyContext) -> Site:
        return next(s for s in context.survey.sites if (s.kind, s.name) == ("layer", "fc"))

    @pytest.fixture
    def costs(self, context: ApplyContext) -> CostTable:
        return context.survey.costs

    @pytest.fixture
    def subject_and_context(
        self, context: ApplyContext
    ) -> tuple[nn.Module, Any, Mapping[str, Decision]]:
        return context.model, context.module, {"conv1": MergePool(), "conv2": MergePool()}

    def content(self, subject: Any) -> object:
        assert isinstance(subject, nn.Module)
        state = {name: tensor.tolist() for name, tensor in subject.state_dict().items()}
        return str(subject), state

    def test_verification_finds_another_stride(self, context: ApplyContext) -> None:
        after, record = PoolMerging().apply(context.model, {"conv1": MergePool()}, context.module)
        after.set_submodule("conv1", context.model.get_submodule("conv1"))
        with pytest.raises(NotCertified, match="'conv1' has stride"):
            PoolMerging().verify(context.model, after, record)


def merged(context: ApplyContext, plan: Plan) -> Applied:
    applied = apply(plan, context)
    certify(context.model, applied, plan, SHAPE)
    return applied


@pytest.mark.parametrize("in_place", [False, True])
def test_chains_of_modules_that_end_in_a_pool_are_found(in_place: bool) -> None:
    first, second = find_pools(Pooled(in_place), SHAPE)
    assert (first.conv, first.between, first.pool) == ("conv1", ("bn1", "relu1"), "pool1")
    assert (first.stride, first.padding, first.grid) == ((2, 2), (1, 1), (8, 8))
    assert (second.conv, second.between, second.pool) == ("conv2", (), "pool2")
    assert (second.stride, second.grid) == ((2, 2), (4, 4))


def test_a_tensor_that_others_read_keeps_its_pool() -> None:
    class Shared(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            y = self.bn1(self.conv1(x))
            pooled = self.pool1(self.relu1(y)) + self.pool1(y)
            logits: Tensor = self.fc(self.pool2(self.conv2(pooled)).flatten(1))
            return logits

    assert [pool.conv for pool in find_pools(Shared(), SHAPE)] == ["conv2"]


def test_costs_are_those_of_the_merged_network(context: ApplyContext) -> None:
    plan = Plan.of({"conv1": [MergePool()], "conv2": [MergePool()]})
    applied = merged(context, plan)
    table = context.survey.costs
    assert applied.cost.macs == count_macs(applied.model, SHAPE)
    assert applied.cost.macs < 0.4 * table.cost(Plan()).macs
    assert applied.cost.params == table.cost(Plan()).params


def test_an_average_without_anything_between_is_nearly_made_up_for(context: ApplyContext) -> None:
    # A 3 x 3 window on the corner of a 2 x 2 mean cannot see all of its 4 x 4 pixels.
    images = context.module.calibration[0]
    with torch.no_grad():
        dense = context.model(images)
        errors = {}
        for refit in ("least_squares", "none"):
            plan = Plan.of({"conv2": [MergePool(refit=refit)]})
            made = merged(context, plan).model(images)
            errors[refit] = float((made - dense).square().mean() / dense.square().mean())
    assert errors["least_squares"] < 0.5 * errors["none"]


def test_a_maximum_of_turned_channels_is_fitted_to_their_minimum(context: ApplyContext) -> None:
    images = context.module.calibration[0]
    model = context.model
    with torch.no_grad():
        norm = model.get_submodule("bn1")
        target = model.get_submodule("pool1")(norm(model.get_submodule("conv1")(images)))
        errors, found = {}, {}
        for refit in ("least_squares", "none"):
            made = merged(context, Plan.of({"conv1": [MergePool(refit=refit)]})).model
            y = made.get_submodule("bn1")(made.get_submodule("conv1")(images))
            found[refit] = y.mean((0, 2, 3))
            errors[refit] = (y - target).square().mean((0, 2, 3))
    assert bool((errors["least_squares"] < 0.5 * errors["none"]).all()), errors
    # The mean is met, also of the channels whose scale is negative.
    assert torch.allclose(found["least_squares"], target.mean((0, 2, 3)), atol=0.05)


def test_it_goes_with_every_other_decision_at_the_layer(context: ApplyContext) -> None:
    plan = Plan.of(
        {
            "conv1": [MergePool(), PruneChannels(keep_channels=4)],
            "conv2": [MergePool(), Factorize(method="spatial", rank_ratio=0.5)],
        }
    )
    applied = merged(context, plan)
    assert applied.cost.macs == count_macs(applied.model, SHAPE)
    model = applied.model
    again = replay(Patch.from_json(json.loads(json.dumps(applied.patch.to_json()))), context)
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    file = export_onnx(model, SHAPE)
    assert parity(file, model, x) < 1e-5
    assert "Pool2d" not in generate(model, SHAPE).source


def test_a_job_that_allows_it_is_offered_it(context: ApplyContext) -> None:
    methods = Methods(allow=("merge_pool",))
    space = resolve_space(context.survey.sites, methods, context.survey.costs)
    assert [(k.site, k.choices) for k in space.knobs] == [
        ("conv1", ("none", "merge")),
        ("conv2", ("none", "merge")),
    ]
    plan = space.decode(space.smallest())
    assert space.encode(plan) == space.smallest()
    assert Plan.from_json(plan.to_json()) == plan


def test_a_layer_without_a_pool_is_refused(context: ApplyContext) -> None:
    with pytest.raises(PlanInvalid, match="No pool follows layer 'fc'"):
        context.survey.costs.cost(Plan.of({"fc": [MergePool()]}))
    bare = ApplyContext.build(context.model, context.survey, SHAPE)
    with pytest.raises(PlanInvalid, match="needs calibration inputs"):
        apply(Plan.of({"conv1": [MergePool()]}), bare)
