from __future__ import annotations

import copy
import json

import pytest
import torch

from compression.apply import ApplyContext
from compression.backend import FLOAT32
from compression.decisions import Decision, DropBlock, PruneChannels
from compression.plan import Plan
from compression.recover.batchnorm import recalibrate
from compression.sensitivity import DamageMeter, Effect, drop_order, profile
from tests.builders import surveyed_resnet

CIFAR = (3, 32, 32)


def inputs() -> list[torch.Tensor]:
    return [torch.randn(16, *CIFAR, generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def context() -> ApplyContext:
    model, result = surveyed_resnet(20)
    # Damage is counted after recalibration: statistics must be the inputs' own before it, too.
    model = copy.deepcopy(model)
    recalibrate(model, inputs(), FLOAT32)
    return ApplyContext.build(model, result, CIFAR)


@pytest.fixture(scope="module")
def meter(context: ApplyContext) -> DamageMeter:
    return DamageMeter(context, inputs(), FLOAT32)


def test_every_option_is_measured_alone(context: ApplyContext, meter: DamageMeter) -> None:
    options: dict[str, list[Decision]] = {
        "layer1.0.conv1": [PruneChannels(keep_channels=k) for k in (4, 12)],
        "layer3.2": [DropBlock()],
    }
    seen: list[tuple[int, int]] = []
    effects = profile(meter, options, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [(e.site, e.decision) for e in effects] == [(s, d) for s in options for d in options[s]]
    assert effects[0].damage > effects[1].damage > 0
    assert effects[2].macs == context.survey.costs.cost(Plan.of({"layer3.2": [DropBlock()]})).macs
    assert [Effect.from_json(json.loads(json.dumps(e.to_json()))) for e in effects] == [*effects]
    assert profile(meter, options) == effects


def test_the_block_missed_least_goes_first(context: ApplyContext, meter: DamageMeter) -> None:
    blocks = ["layer1.1", "layer2.1", "layer3.1"]
    single = {e.site: e.damage for e in profile(meter, {b: [DropBlock()] for b in blocks})}
    order = drop_order(meter, blocks, 2)
    assert len(order) == 2
    assert order[0] == min(single, key=lambda block: single[block])
