from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from compression.counting import count_macs, count_params, matrix_macs
from compression.models.cifar_resnet import cifar_resnet
from compression.site import MODEL_SITE
from compression.survey import OTHER, survey
from compression.surveyed import Survey
from tests.builders import (
    PRUNABLE,
    SHAPE,
    ConcatNet,
    FixedWidthNet,
    FlattenVgg,
    MeanPooledResNet,
    MobileNet,
    NormNet,
    PartNet,
    SharedNet,
    seeded,
    surveyed_resnet,
)

CIFAR = (3, 32, 32)


def frozen(result: Survey) -> dict[str, str]:
    return {s.name: s.frozen for s in result.sites if s.frozen and s.kind == "channels"}


@pytest.mark.parametrize(
    ("depth", "macs", "params"), [(20, 40_551_040, 269_722), (56, 125_485_696, 853_018)]
)
def test_cifar_resnet_costs_what_is_published(depth: int, macs: int, params: int) -> None:
    _, result = surveyed_resnet(depth)
    assert (result.summary["macs"], result.summary["params"]) == (macs, params)
    model_site = result.sites[-1]
    assert (model_site.name, model_site.kind) == (MODEL_SITE, "model")
    assert (model_site.macs, model_site.params) == (macs, params)


def test_resnet56_is_surveyed_in_seconds() -> None:
    started = time.process_time()
    survey(cifar_resnet(56), CIFAR)
    # Measured: 1.2 s; the bound leaves room for slow machines.
    assert time.process_time() - started < 15.0


@pytest.mark.parametrize("depth", [20, 56])
def test_inner_channels_of_every_residual_block_can_be_pruned(depth: int) -> None:
    _, result = surveyed_resnet(depth)
    blocks = (depth - 2) // 6
    expected = [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(blocks)]
    assert [site.name for site in result.prunable()] == expected


@pytest.mark.parametrize("build", [lambda: cifar_resnet(20), MeanPooledResNet])
def test_a_residual_stream_through_channel_padding_is_frozen_and_says_so(
    build: Callable[[], nn.Module],
) -> None:
    result = survey(build(), CIFAR)
    assert frozen(result) == {
        "conv1": "its channels pass through padding whose alignment pruning would break"
    }
    stream = result.sites[0]
    assert {"conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.2.conv2"} <= set(stream.members)


def test_untrained_zero_scales_do_not_hide_the_misalignment() -> None:
    model = MeanPooledResNet()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bn2" in name:
                parameter.zero_()
    assert "conv1" in frozen(survey(model, CIFAR))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (FlattenVgg, ["features.0", "features.4", "hidden"]),
        (ConcatNet, ["stem", "left", "right", "merge"]),
        (
            MobileNet,
            [
                "stem",
                "blocks.0.expand",
                "blocks.0.squeeze",
                "blocks.1.expand",
                "blocks.1.squeeze",
                "blocks.1.project",
                "blocks.2.expand",
                "blocks.2.squeeze",
            ],
        ),
    ],
)
def test_sites_are_named_after_their_first_producer_in_forward_order(
    build: Callable[[], nn.Module], names: list[str]
) -> None:
    result = survey(seeded(build), SHAPE)
    channels = [site.name for site in result.sites if site.kind == "channels"]
    assert channels == names
    assert result.sites[-1].name == MODEL_SITE
    assert frozen(result) == {}


def test_the_classifier_is_a_member_but_no_site() -> None:
    result = survey(seeded(FlattenVgg), SHAPE)
    channels = [site for site in result.sites if site.kind == "channels"]
    assert "classifier" not in [site.name for site in channels]
    assert "classifier" in channels[-1].members


def test_a_residual_join_is_one_site_with_all_its_layers() -> None:
    result = survey(seeded(MobileNet), SHAPE)
    assert result.sites[0].members == (
        "stem",
        "norm",
        "blocks.0.expand",
        "blocks.0.project",
        "blocks.0.norm3",
        "blocks.1.expand",
    )


def test_a_wide_layer_met_by_narrow_ones_is_split_among_their_sites() -> None:
    result = survey(seeded(PartNet), SHAPE)
    assert [(s.name, s.channels, s.members) for s in result.prunable()] == [
        ("left", 5, ("wide", "left", "classifier")),
        ("right", 7, ("wide", "right", "classifier")),
    ]


def test_channels_that_are_normalised_together_are_frozen_with_the_reason() -> None:
    reasons = frozen(survey(seeded(NormNet), SHAPE))
    assert reasons["conv1"] == "LayerNorm 'norm' mixes its channels into one statistic"
    assert "not the same model with these channels ignored" in reasons["conv2"]
    assert set(reasons) == {"conv1", "conv2"}


def test_widths_written_into_code_are_frozen() -> None:
    reasons = frozen(survey(seeded(FixedWidthNet), SHAPE))
    assert "relies on its width" in reasons["conv1"]
    assert set(reasons) == {"conv1"}


def test_convolutions_in_groups_lose_the_same_positions_of_every_group() -> None:
    result = survey(seeded(FixedWidthNet), SHAPE)
    widths = {site.name: site.channels for site in result.prunable()}
    assert widths == {"mix": 4, "conv2": 4, "conv3": 8}


def test_shared_tensors_are_frozen_and_counted_once() -> None:
    model = seeded(SharedNet)
    result = survey(model, SHAPE)
    assert frozen(result)["first"] == "'first' and 'second' share one weight tensor"
    assert (
        result.summary["params"]
        == count_params(model)
        == sum(parameter.numel() for parameter in model.parameters())
    )
    correction = next(row for row in result.costs.layers if row.name == OTHER)
    assert correction.fixed_params == -64


def test_a_layer_used_twice_multiplies_twice() -> None:
    result = survey(seeded(SharedNet), SHAPE)
    again = next(row for row in result.costs.layers if row.name == "again")
    assert again.positions == 2 * 16 * 16


@pytest.mark.parametrize("name", list(PRUNABLE))
def test_counted_macs_are_those_of_pytorchs_dispatcher(name: str) -> None:
    model = seeded(PRUNABLE[name])
    assert count_macs(model, SHAPE) == matrix_macs(model, SHAPE)
    assert survey(model, SHAPE).summary["uncounted_macs"] == 0


def test_products_of_activations_are_reported_as_uncounted() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.linear = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = self.conv(x).flatten(2)
            logits: torch.Tensor = self.linear((flat @ flat.transpose(1, 2)).flatten(1))
            return logits

    summary = survey(seeded(Gram), SHAPE).summary
    assert summary["macs"] == 4 * 3 * 256 + 160
    assert summary["uncounted_macs"] == 4 * 4 * 256


def test_a_survey_survives_json() -> None:
    result = survey(seeded(MobileNet), SHAPE)
    assert Survey.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_survey_leaves_the_model_alone() -> None:
    model = seeded(MobileNet).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    survey(model, SHAPE)
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())


def test_a_survey_repeats() -> None:
    model = seeded(ConcatNet)
    assert survey(model, SHAPE) == survey(model, SHAPE)


def test_layers_that_share_a_weight_are_each_counted_once() -> None:
    result = survey(seeded(SharedNet), SHAPE)
    assert result.summary["uncounted_macs"] == 0
