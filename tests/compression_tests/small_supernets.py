"""Supernets of small networks, for tests."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from compression.apply import ApplyContext
from compression.decisions import PruneChannels
from compression.methods import Methods
from compression.plan import Plan
from compression.supernets.pruning_net import PruningNet
from compression.supernets.shared_weights import SharedWeights
from compression.supernets.supernet import Supernet
from compression.supernets.widths import WidthChoices
from compression.survey import survey
from tests.builders import SHAPE, seeded

FINE = Methods(channel_multiple=1, min_keep_ratio=0.1)
DIGITS = (1, 8, 8)
KINDS = ("shared", "residual", "generated")


@functools.cache
def context_of(build: Callable[[], nn.Module], shape: tuple[int, int, int] = SHAPE) -> ApplyContext:
    model = seeded(build)
    return ApplyContext.build(model, survey(model, shape), shape)


def supernet_of(
    kind: str, context: ApplyContext, *, disturb: bool = False, networks: int = 4
) -> Supernet:
    choices = WidthChoices.of(context.survey, FINE)
    order = context.module.rankings.order(context.model, "l2")
    generator = torch.Generator().manual_seed(1)
    made: Supernet
    if kind == "shared":
        made = SharedWeights(context, choices, order, networks=networks)
    else:
        made = PruningNet(context, choices, order, generator=generator, residual=kind == "residual")
    if disturb:
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.02 * noise)
    return made.eval()


def plan_at(widths: dict[str, int], choices: WidthChoices) -> Plan:
    widest = choices.widest()
    return Plan.of(
        {
            site: [PruneChannels(keep_channels=width, selector="fpgm")]
            for site, width in widths.items()
            if width < widest[site]
        }
    )
