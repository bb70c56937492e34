from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from compression.apply import ApplyContext, apply, replay
from compression.blocks import block_similarity, find_blocks
from compression.certificate import certify
from compression.cost import CostTable
from compression.counting import count_macs, count_params
from compression.decisions import Decision, DropBlock, PruneChannels
from compression.errors import NotCertified, PlanInvalid
from compression.plan import Plan
from compression.primitives.drop_block import BlockDrop
from compression.site import Site
from compression.survey import survey
from tests.builders import SHAPE, MobileNet, seeded, surveyed_resnet
from tests.contracts.primitive import PrimitiveContract

CIFAR = (3, 32, 32)


@pytest.fixture(scope="module")
def context() -> ApplyContext:
    model, result = surveyed_resnet(20)
    return ApplyContext.build(model, result, CIFAR)


class TestBlockDrop(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> BlockDrop:
        return BlockDrop()

    @pytest.fixture
    def site(self, context: ApplyContext) -> Site:
        return next(s for s in context.survey.sites if s.name == "layer2.1")

    @pytest.fixture
    def other_site(self, context: ApplyContext) -> Site:
        return context.survey.sites[-1]

    @pytest.fixture
    def costs(self, context: ApplyContext) -> CostTable:
        return context.survey.costs

    @pytest.fixture
    def subject_and_context(
        self, context: ApplyContext
    ) -> tuple[nn.Module, Any, Mapping[str, Decision]]:
        return context.model, context.module, {"layer2.1": DropBlock()}

    def content(self, subject: Any) -> object:
        assert isinstance(subject, nn.Module)
        return {name: tensor.tolist() for name, tensor in subject.state_dict().items()}

    def test_verification_finds_another_change(self, context: ApplyContext) -> None:
        after, record = BlockDrop().apply(context.model, {"layer2.1": DropBlock()}, context.module)
        after.get_submodule("layer3").add_module("1", nn.Identity())
        with pytest.raises(NotCertified, match=r"\['layer2.1'\]: layer 'layer3.1' differs"):
            BlockDrop().verify(context.model, after, record)


def test_residual_blocks_of_one_shape_are_found_and_no_others(context: ApplyContext) -> None:
    blocks = [site.name for site in context.survey.sites if site.kind == "block"]
    assert blocks == [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3) if (s, b) not in
                      ((2, 0), (3, 0))]  # fmt: skip
    assert set(find_blocks(seeded(MobileNet), SHAPE)) <= {"blocks.0", "blocks.1", "blocks.2"}


def test_a_plain_network_has_no_blocks() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2))
    assert find_blocks(plain.eval(), (3, 8, 8)) == ()


def test_a_transformer_layer_is_a_block() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            logits: torch.Tensor = self.head(self.layer(tokens).mean(1))
            return logits

    assert find_blocks(Tokens().eval(), (8, 2, 2)) == ("layer",)


def test_a_dropped_block_leaves_the_rest_and_costs_nothing(context: ApplyContext) -> None:
    plan = Plan.of({"layer1.1": [DropBlock()], "layer3.2": [DropBlock()]})
    applied = apply(plan, context)
    certify(context.model, applied, plan, CIFAR)
    assert isinstance(applied.model.get_submodule("layer3.2"), nn.Identity)
    assert applied.cost.macs == count_macs(applied.model, CIFAR)
    assert applied.cost.params == count_params(applied.model)
    again = replay(applied.patch, context).state_dict()
    assert all(torch.equal(tensor, again[k]) for k, tensor in applied.model.state_dict().items())


def test_channels_are_pruned_in_what_is_left(context: ApplyContext) -> None:
    plan = Plan.of(
        {
            "layer1.1": [DropBlock()],
            "layer1.0.conv1": [PruneChannels(keep_channels=8)],
            "layer3.2.conv1": [PruneChannels(keep_channels=24)],
        }
    )
    applied = apply(plan, context)
    certify(context.model, applied, plan, CIFAR)
    assert [stage.kind for stage in applied.stages] == ["drop_block", "prune_channels"]
    again = replay(applied.patch, context).state_dict()
    assert all(torch.equal(tensor, again[k]) for k, tensor in applied.model.state_dict().items())


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"layer2.0": [DropBlock()]}, "'layer2.0' is no block of this model"),
        (
            {"layer1.1": [DropBlock()], "layer1.1.conv1": [PruneChannels(keep_channels=8)]},
            "'layer1.1.conv1' takes 'prune_channels', but the block around it is dropped",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    context: ApplyContext, decisions: dict[str, list[Decision]], message: str
) -> None:
    with pytest.raises(PlanInvalid, match=message):
        apply(Plan.of(decisions), context)


def test_a_block_that_adds_little_is_like_its_input() -> None:
    model, _ = surveyed_resnet(20)
    with torch.no_grad():
        model.get_submodule("layer1.1").get_parameter("bn2.weight").mul_(0.01)
        model.get_submodule("layer1.1").get_parameter("bn2.bias").zero_()
    found = block_similarity(model, ("layer1.1", "layer1.2"), [torch.randn(4, *CIFAR)])
    assert found["layer1.1"] > 0.99
    assert found["layer1.1"] > found["layer1.2"]


def test_the_survey_lists_every_layer_with_its_costs() -> None:
    model, result = surveyed_resnet(20)
    layers = result.layer_sites()
    assert [s.name for s in layers] == [
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    assert sum(site.macs for site in layers) == result.summary["macs"]
    again = survey(model, CIFAR).to_json()
    assert again == result.to_json()
