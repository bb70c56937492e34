"""Preparation `supernet`: one set of weights for all widths, trained by the sandwich rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.supernets.shared_weights import SharedWeights
from compression.supernets.supernet import Supernet
from compression.supernets.widths import WidthChoices
from workers.context import JobContext
from workers.preparations.preparation import Order, Prepared
from workers.supernet_base import SupernetBase, load_supernet, prepare_supernet

OWN = {"networks": 4, "learning_rate": 0.02}
"""Networks of one step, and a learning rate for weights that are trained already."""


def prepare(order: Order) -> Prepared:
    """Train shared weights; see `supernet_base.prepare_supernet`."""
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
    networks = int(options["networks"])
    return SharedWeights(context.apply_context, choices, order, networks=networks)
