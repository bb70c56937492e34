from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from compression.apply import ApplyContext, apply
from compression.counting import count_calls, count_macs, count_params
from compression.decisions import PruneChannels, Quantize
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.survey import survey
from tests.builders import PRUNABLE, SHAPE, SharedNet, seeded

BUILDERS = {**PRUNABLE, "shared": SharedNet}


@functools.cache
def context(name: str) -> ApplyContext:
    model = seeded(BUILDERS[name])
    return ApplyContext.build(model, survey(model, SHAPE), SHAPE)


def random_plan(context: ApplyContext, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    return Plan.of(
        {
            site.name: [PruneChannels(keep_channels=int(rng.integers(1, site.channels)))]
            for site in context.survey.prunable()
            if rng.random() < 0.7
        }
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", list(BUILDERS))
def test_the_table_equals_counting_the_pruned_model(name: str, seed: int) -> None:
    plan = random_plan(context(name), seed)
    pruned = apply(plan, context(name)).model
    cost = context(name).survey.costs.cost(plan)
    assert cost.params == count_params(pruned)
    assert cost.macs == count_macs(pruned, SHAPE)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_every_layer_row_equals_counting_that_layer(name: str) -> None:
    plan = random_plan(context(name), 11)
    pruned = apply(plan, context(name)).model
    rows = context(name).survey.costs.layer_costs(plan)
    for call in count_calls(pruned, SHAPE):
        own = sum(p.numel() for p in pruned.get_submodule(call.name).parameters())
        if own:
            assert (rows[call.name].macs, rows[call.name].params) == (call.macs, own)


@pytest.mark.parametrize(("keep_ratio", "share"), [(0.5, 0.505), (0.25, 0.258)])
def test_uniform_inner_widths_of_resnet20_cost_the_published_share(
    keep_ratio: float, share: float
) -> None:
    costs = context("resnet20").survey.costs
    plan = Plan.of(
        {
            site.name: [PruneChannels(keep_channels=int(site.channels * keep_ratio))]
            for site in context("resnet20").survey.prunable()
        }
    )
    assert costs.cost(plan).macs / costs.cost(Plan()).macs == pytest.approx(share, abs=5e-4)


def test_a_convolution_costs_its_closed_form() -> None:
    convolution = nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), groups=1)
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    expected = 8 * 8 * 8 * 3 * 3 * 5 + 8 * 10
    assert count_macs(model, SHAPE) == expected
    assert survey(model, SHAPE).costs.cost(Plan()).macs == expected


def test_grouped_and_transposed_convolutions_and_tokens_cost_their_closed_form() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False)
            self.grouped = nn.Conv2d(4, 8, 3, groups=2, padding=1, bias=False)
            self.tokens = nn.Linear(8, 10, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.grouped(self.up(x)).flatten(2).transpose(1, 2)
            logits: torch.Tensor = self.tokens(out).mean(1)
            return logits

    up, grouped, tokens = 256 * 3 * 4 * 4, 1024 * 8 * 2 * 9, 1024 * 8 * 10
    assert survey(Odd(), SHAPE).costs.cost(Plan()).macs == up + grouped + tokens


def test_eight_bits_store_weights_in_one_byte_and_the_rest_in_four() -> None:
    table = context("flatten").survey.costs
    dense, quantized = table.cost(Plan()), table.cost(Plan.of({MODEL_SITE: [Quantize()]}))
    weights = sum(
        module.weight.numel()
        for module in context("flatten").model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )
    assert dense.weight_bytes == 4 * dense.params
    assert dense.weight_bytes - quantized.weight_bytes == 3 * weights
    assert quantized.params == dense.params


def test_a_plan_over_a_frozen_site_has_no_cost() -> None:
    plan = Plan.of({"conv1": [PruneChannels(keep_channels=8)]})
    with pytest.raises(KeyError, match="conv1"):
        context("resnet20").survey.costs.cost(plan)
