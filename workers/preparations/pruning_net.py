"""Preparation `pruning_net`: a network that generates the weights of any widths (MetaPruning)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compression.supernets.pruning_net import PruningNet
from compression.supernets.supernet import Supernet
from compression.supernets.widths import WidthChoices
from workers.context import JobContext
from workers.preparations.preparation import Order, Prepared
from workers.supernet_base import SupernetBase, load_supernet, prepare_supernet

OWN = {"residual": True, "learning_rate": 0.02}
"""Whether what is generated is added to the dense weights, and the learning rate for that."""


def prepare(order: Order) -> Prepared:
    """Train a PruningNet; see `supernet_base.prepare_supernet`."""
    return prepare_supernet(order, _make, OWN)


def load(parts: Mapping[str, bytes], context: JobContext) -> SupernetBase:
    """Return the base that `prepare` left."""
    return load_supernet(parts, context, _make)


def _make(
    options: Mapping[str, Any],
    choices: WidthChoices,
    order: Mapping[str, Any],
    context: JobContext,
) -> Supernet:
    return PruningNet(
        context.apply_context,
        choices,
        order,
        # The first weights are the same for every order; a trained net's are loaded over them.
        generator=torch.Generator().manual_seed(context.spec.seed),
        residual=bool(options["residual"]),
    )
