from __future__ import annotations

import json

import pytest
import torch

from compression.allocation import allocate
from compression.apply import ApplyContext
from compression.backend import FLOAT32
from compression.decisions import Decision, DropBlock, PruneChannels
from compression.errors import PlanInvalid
from compression.plan import Plan
from compression.sensitivity import DamageMeter, Effect, drop_order, profile
from tests.builders import surveyed_resnet

CIFAR = (3, 32, 32)


@pytest.fixture(scope="module")
def context() -> ApplyContext:
    model, result = surveyed_resnet(20)
    return ApplyContext.build(model, result, CIFAR)


@pytest.fixture(scope="module")
def meter(context: ApplyContext) -> DamageMeter:
    inputs = [torch.randn(16, *CIFAR, generator=torch.Generator().manual_seed(0))]
    return DamageMeter(context, inputs, FLOAT32)


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


def made_up(context: ApplyContext, damages: dict[str, float]) -> list[Effect]:
    effects = []
    for site, damage in damages.items():
        decision = DropBlock() if "conv" not in site else PruneChannels(keep_channels=8)
        cost = context.survey.costs.cost(Plan.of({site: [decision]}))
        effects.append(
            Effect(site=site, decision=decision, damage=damage, macs=cost.macs, params=cost.params)
        )
    return effects


def test_the_cheapest_damage_is_taken_first(context: ApplyContext) -> None:
    effects = made_up(
        context, {"layer1.0.conv1": 5.0, "layer1.1.conv1": 0.1, "layer1.1": 0.9, "layer2.1": 0.5}
    )
    costs = context.survey.costs
    dense = costs.cost(Plan()).macs
    assert allocate(effects, costs, dense) == Plan()
    assert allocate(effects, costs, dense - 1) == Plan.of(
        {"layer1.1.conv1": [PruneChannels(keep_channels=8)]}
    )
    least = allocate(effects, costs, costs.cost(
        Plan.of({"layer1.0.conv1": [PruneChannels(keep_channels=8)], "layer1.1": [DropBlock()],
                 "layer2.1": [DropBlock()]})).macs)  # fmt: skip
    assert least.dropped() == {"layer1.1", "layer2.1"}
    assert set(least.prune_channels()) == {"layer1.0.conv1"}


def test_a_bound_out_of_reach_is_refused(context: ApplyContext) -> None:
    effects = made_up(context, {"layer2.1": 0.5})
    with pytest.raises(PlanInvalid, match="1000 MACs are out of reach; these decisions lead to"):
        allocate(effects, context.survey.costs, 1000)
