"""What a differentiable search of widths and depths chooses from, and the plan a choice means.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019,
    https://arxiv.org/abs/1905.09717: eight widths per layer; per stage of n blocks the depths 1 to
    3 for n = 3, every other one from 1 to n for more.

Deviations:
    Widths are those of a plan space: of coupling groups, not of single layers, on the space's own
    grid. Only blocks that can be the identity are skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compression.plan import Plan
from compression.space import PlanSpace

MAX_WIDTHS = 8
"""Most widths per site, as in the paper."""

MOST_EVERY_DEPTH = 3
"""Stages of up to so many blocks are offered every depth, longer ones every other."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WidthChoice:
    """The widths of one site.

    Attributes:
        site: Its name.
        candidates: Kept channels, ascending; the last one is all.
    """

    site: str
    candidates: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DepthChoice:
    """The depths of one stage: a chain of blocks, the last of which can be skipped.

    Attributes:
        blocks: Sites of the chain, in forward order, each fed by the one before.
        candidates: How many of them stay, ascending; the last one is all.
    """

    blocks: tuple[str, ...]
    candidates: tuple[int, ...]

    @property
    def name(self) -> str:
        """The chain's first block."""
        return self.blocks[0]


def thinned(candidates: Sequence[int], most: int = MAX_WIDTHS) -> tuple[int, ...]:
    """Return at most `most` of ascending values, evenly spread, the first and the last included."""
    count = min(most, len(candidates))
    places = {round(i * (len(candidates) - 1) / max(1, count - 1)) for i in range(count)}
    return tuple(candidates[place] for place in sorted(places | {len(candidates) - 1}))


def depths(blocks: int) -> tuple[int, ...]:
    """Return the depths that a stage of so many blocks may have, ascending; the last one is all."""
    if blocks <= MOST_EVERY_DEPTH:
        return tuple(range(1, blocks + 1))
    return tuple(sorted({*range(1, blocks + 1, 2), blocks}))


def width_choices(space: PlanSpace) -> tuple[WidthChoice, ...]:
    """Return the widths of every channel site that the space leaves a choice."""
    return tuple(
        WidthChoice(site=knob.site, candidates=thinned([int(c) for c in knob.choices]))
        for knob in space.knobs
        if knob.field == "keep_channels" and len(knob.choices) > 1
    )


def depth_choices(
    space: PlanSpace, model: nn.Module, input_shape: tuple[int, int, int]
) -> tuple[DepthChoice, ...]:
    """Return the depths of every chain of blocks that the space allows to be dropped.

    A block joins the chain of the block that its input comes from. A chain whose first block has
    an elder sibling (in a ResNet the one that changes the resolution) may vanish as a whole;
    otherwise its first block stays.

    Args:
        space: With `drop_block` knobs.
        model: In eval mode; left as it was.
        input_shape: C, H, W of one input.
    """
    blocks = [k.site for k in space.knobs if k.field == "drop_block" and len(k.choices) > 1]
    chains: list[list[str]] = []
    for block, feeder in _feeders(model, blocks, input_shape).items():
        chain = next((c for c in chains if c[-1] == feeder), None)
        if chain is None:
            chains.append([block])
        else:
            chain.append(block)
    found = []
    for chain in chains:
        parent, _, child = chain[0].rpartition(".")
        siblings = [name for name, _ in model.get_submodule(parent).named_children()]
        elder = min(1, siblings.index(child))
        keeps = tuple(d - elder for d in depths(len(chain) + elder))
        if len(keeps) > 1:
            found.append(DepthChoice(blocks=tuple(chain), candidates=keeps))
    return tuple(found)


def _feeders(
    model: nn.Module, blocks: Sequence[str], input_shape: tuple[int, int, int]
) -> dict[str, str | None]:
    """Return by block, in forward order, the block whose output it reads; None where none."""
    feeders: dict[str, str | None] = {}
    outputs: list[tuple[str, Tensor]] = []
    handles = []
    for name in blocks:

        def before(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            x = args[0]
            feeders[name] = next((b for b, y in outputs if y is x), None)

        def after(_: nn.Module, args: object, output: Tensor, name: str = name) -> None:
            del args
            outputs.append((name, output))

        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        with torch.no_grad():
            model(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return feeders


def plan_of(
    space: PlanSpace, kept: Mapping[str, float], dropped: Sequence[str], selector: str
) -> Plan:
    """Return the plan with these widths and without these blocks, everything else untouched.

    Args:
        space: In which the plan is.
        kept: Channels by site, rounded to the nearest choice; what is missing stays whole.
        dropped: Blocks.
        selector: Criterion, where the space has a choice of them.
    """
    point = list(space.dense())
    for number, knob in enumerate(space.knobs):
        if knob.field == "keep_channels" and knob.site in kept:
            point[number] = knob.nearest(kept[knob.site])
        elif knob.field == "drop_block" and knob.site in dropped:
            point[number] = len(knob.choices) - 1
        elif knob.field == "selector" and selector in knob.choices:
            point[number] = knob.choices.index(selector)
    return space.decode(point)
