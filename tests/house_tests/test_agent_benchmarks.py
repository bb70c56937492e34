"""What the benchmarks of agents read and rebuild, without their data."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from compression.apply import ApplyContext, apply
from compression.counting import count_macs
from compression.decisions import DropBlock, PruneChannels
from compression.plan import Plan
from tests.benchmarks.agents_finals import winners, with_selector
from tests.benchmarks.agents_peers import with_state
from tests.builders import surveyed_resnet

PLAN = Plan.of({"layer1.0.conv1": [PruneChannels(keep_channels=6)], "layer2.1": [DropBlock()]})
SHAPE = (3, 32, 32)


def test_winners_are_those_of_one_setting_and_seed_that_found_something(tmp_path: Path) -> None:
    row = {"setting": "macs", "seed": 0, "budget": 60, "best": 70.0, "best_plan": PLAN.to_json()}
    rows = [
        {**row, "agent": "auto"},
        {**row, "agent": "auto", "seed": 1, "best": 71.0},
        {**row, "agent": "cbo", "setting": "latency"},
        {**row, "agent": "tpe", "budget": 30},
        {**row, "agent": "random", "best": None, "best_plan": None},
    ]
    book = tmp_path / "searches-20.jsonl"
    book.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"setting": "mac')
    found = winners(book, "macs", 0, 60)
    assert list(found) == ["auto"]
    assert found["auto"]["best"] == 70.0


def test_another_selector_leaves_widths_and_blocks() -> None:
    assert with_selector(PLAN, None) is PLAN
    plan = with_selector(PLAN, "thinet")
    assert plan.dropped() == PLAN.dropped()
    assert plan.prune_channels()["layer1.0.conv1"] == PruneChannels(
        keep_channels=6, selector="thinet", refit="least_squares"
    )


def test_a_peers_network_is_rebuilt_from_its_weights_alone() -> None:
    model, survey = surveyed_resnet(20)
    model.eval()
    context = ApplyContext.build(model, survey, SHAPE)
    thin = apply(
        Plan.of({"layer3.2.conv1": [PruneChannels(keep_channels=12)]}), context
    ).model.eval()
    rebuilt = with_state(model, thin.state_dict())
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(rebuilt(x), thin(x))
    assert count_macs(rebuilt, SHAPE) == count_macs(thin, SHAPE)
