"""Costs that are published, counted by the engine to the digit.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019: the
    widths and the `estimated_FLOP` of the authors' searched CIFAR-10 networks (AutoDL-Projects,
    configs/NeurIPS-2019).
    He et al. (2018), "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV:
    the widths of MobileNetV1 that their repository names.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.cost import CostTable
from compression.counting import count_macs, count_params
from compression.decisions import PruneChannels
from compression.layer_cost import LayerCost
from compression.models.cifar_resnet import cifar_resnet
from compression.plan import Plan
from compression.survey import survey

SHAPE = (3, 32, 32)

MOBILENET = (3, 32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
AMC_MOBILENET = (3, 24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
"""Channels that enter the stem, each pointwise convolution, and the classifier."""

TAS_20 = (3, 16, 6, 4, 4, 4, 4, 4, 32, 32, 12, 19, 32, 28, 64, 64, 64, 64, 64, 44)
TAS_56 = (
    3,
    *(16, 16, 16, 14, 11, 9, 16, 12, 16, 6, 16, 4, 8, 4, 14, 6, 4, 4, 4),
    *(32, 32, 32, 32, 32, 32, 22, 28, 32, 32, 19, 9, 19, 16, 9, 25, 16, 9),
    *(64, 64, 64, 64, 64, 64, 64, 64, 64, 51, 19, 19, 32, 19, 19, 32, 19, 25),
)  # fmt: skip


def mobilenet(entering: Sequence[int]) -> nn.Module:
    """Return MobileNetV1's layers for the channels that enter its dense ones."""
    layers: list[nn.Module] = [nn.Conv2d(entering[0], entering[1], 3, 2, 1, bias=False)]
    for place, (before, after) in enumerate(pairwise(entering[1:])):
        stride = 2 if place in (1, 3, 5, 11) else 1
        layers.append(nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False))
        layers.append(nn.Conv2d(before, after, 1, bias=False))
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(entering[-1], 1000))


class SearchedResNet(nn.Module):
    """A CIFAR ResNet of any width per convolution; a 1 x 1 projection where two do not fit."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        per_stage = (len(widths) - 2) // 6
        self.stem = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        before = widths[1]
        for stage, depth in enumerate(depths):
            for block in range(depth):
                place = 2 + 2 * (stage * per_stage + block)
                inner, after = widths[place : place + 2]
                blocks.append(SearchedBlock(before, inner, after, 1 + (stage > 0 and block == 0)))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(self.stem(x))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


class SearchedBlock(nn.Module):
    def __init__(self, before: int, inner: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, inner, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inner, after, 3, padding=1, bias=False)
        self.stride = stride
        self.shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        short = functional.avg_pool2d(x, 2) if self.stride == 2 else x
        if self.shortcut is not None:
            short = self.shortcut(short)
        out: Tensor = functional.relu(self.conv2(functional.relu(self.conv1(x))) + short)
        return out


def estimated_macs(widths: Sequence[int], depths: Sequence[int]) -> int:
    """Return what the authors' code counts: after a stage comes the last, skipped block's width."""
    per_stage = (len(widths) - 2) // 6

    def row(name: str, before: int, after: int, kernel: int, side: int) -> LayerCost:
        return LayerCost(name=name, op="conv", in_channels=before, out_channels=after,
                         kernel=kernel, positions=side * side)  # fmt: skip

    rows = [row("stem", widths[0], widths[1], 9, 32)]
    before = widths[1]
    for stage, depth in enumerate(depths):
        side = 32 >> stage
        for block in range(per_stage):
            place = 2 + 2 * (stage * per_stage + block)
            inner, after = widths[place : place + 2]
            if block < depth:
                name = f"{stage}.{block}"
                rows.append(row(f"{name}.conv1", before, inner, 9, side))
                rows.append(row(f"{name}.conv2", inner, after, 9, side))
                if before != after:
                    rows.append(row(f"{name}.shortcut", before, after, 1, side))
            before = after
    rows.append(row("linear", before, 10, 1, 1))
    return CostTable(tuple(rows), {}).cost(Plan()).macs


@pytest.mark.parametrize(
    ("depth", "macs", "params"),
    [
        (20, 40_551_040, 269_722),
        (32, 68_862_592, 464_154),
        (56, 125_485_696, 853_018),
        (110, 252_887_680, 1_727_962),
    ],
)
def test_cifar_resnets_cost_what_they_should(depth: int, macs: int, params: int) -> None:
    model = cifar_resnet(depth)
    assert count_macs(model, SHAPE) == macs
    assert count_params(model) == params


@pytest.mark.parametrize(
    ("depth", "half", "quarter"), [(20, 0.505, 0.258), (32, 0.503, 0.255), (56, 0.502, 0.253)]
)
def test_inner_widths_cut_alike_cost_what_they_should(
    depth: int, half: float, quarter: float
) -> None:
    found = survey(cifar_resnet(depth), SHAPE)
    for share, expected in ((0.5, half), (0.25, quarter)):
        plan = Plan.of(
            {
                site.name: [PruneChannels(keep_channels=round(share * site.channels))]
                for site in found.prunable()
            }
        )
        kept = found.costs.cost(plan).macs / found.costs.cost(Plan()).macs
        assert round(kept, 3) == expected


def test_the_searched_mobilenet_costs_what_its_widths_say() -> None:
    shape = (3, 224, 224)
    with torch.no_grad():
        # 569 million as its paper says, and 51.7 % of them.
        assert count_macs(mobilenet(MOBILENET), shape) == 568_740_352
        assert count_macs(mobilenet(AMC_MOBILENET), shape) == 293_870_000


def test_the_searched_resnet20_costs_its_published_estimate() -> None:
    # 3-3-3: no block is skipped, so that the estimate is the truth.
    with torch.no_grad():
        assert count_macs(SearchedResNet(TAS_20, (3, 3, 3)), SHAPE) == 22_444_472
    assert estimated_macs(TAS_20, (3, 3, 3)) == 22_444_472


def test_the_searched_resnet56_costs_more_than_its_published_estimate() -> None:
    assert estimated_macs(TAS_56, (5, 5, 5)) == 57_933_050
    true = count_macs(SearchedResNet(TAS_56, (5, 5, 5)), SHAPE)
    assert round(true / 1e6, 2) == 59.86
