"""Controls: is the compressed network good for its weights, or only for its shape?

Reference:
    Liu et al. (2019), "Rethinking the Value of Network Pruning", section 3,
    https://arxiv.org/abs/1810.05270: the small network, trained from random weights for as many
    epochs as the large one (Scratch-E), or for as much computation (Scratch-B): epochs times the
    ratio of the costs, but at most twice as many.

Deviations:
    Convolutions start by He et al. (2015), "Delving Deep into Rectifiers", equation 10, all other
    layers as torch starts them, whatever the architecture's own code does.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from compression.errors import CompressionError
from compression.recover.training import Recipe

Variant = Literal["E", "B"]

MOST_EPOCHS_RATIO = 2.0
"""The paper doubles the epochs at most."""


def scratch(
    model: nn.Module,
    recipe: Recipe,
    variant: Variant,
    *,
    dense_macs: int,
    macs: int,
    generator: torch.Generator,
    most_epochs_ratio: float = MOST_EPOCHS_RATIO,
) -> tuple[nn.Module, Recipe]:
    """Return a network of the same shape with random weights, and how to train it.

    Train it as the compressed one was, with the same teacher or without one.

    Args:
        model: The compressed network; left as it was.
        recipe: By which the large network was trained: a whole training, not a recovery.
        variant: `E`: the same epochs (or steps); `B`: `dense_macs / macs` times as many.
        dense_macs: Of the large network, > 0.
        macs: Of the compressed network, > 0.
        generator: Of the first weights.
        most_epochs_ratio: Limit of the factor in `B`, at least 1.

    Raises:
        CompressionError: A count is not positive, the limit is below 1, or a layer cannot be
            initialised.
    """
    for name, value, least in (
        ("dense_macs", dense_macs, 1),
        ("macs", macs, 1),
        ("most_epochs_ratio", most_epochs_ratio, 1),
    ):
        if value < least:
            raise CompressionError(f"Scratch control: {name} is {value}; {least} is the least")
    fresh = copy.deepcopy(model)
    reinitialize(fresh, generator)
    if variant == "E":
        return fresh, recipe
    factor = min(max(dense_macs / macs, 1.0), most_epochs_ratio)
    steps = None if recipe.steps is None else round(recipe.steps * factor)
    return fresh, dataclasses.replace(recipe, epochs=recipe.epochs * factor, steps=steps)


def reinitialize(model: nn.Module, generator: torch.Generator) -> None:
    """Replace all weights by random ones and all statistics by their first values, in place.

    Same structure and generator state: same weights. Torch's global generator is left alone.

    Args:
        model: Any network whose parameters are those of torch's layers.
        generator: Gives one number, which seeds everything.

    Raises:
        CompressionError: A module has parameters of its own and no `reset_parameters`.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None)
            reset = getattr(module, "_reset_parameters", None) if reset is None else reset
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise CompressionError(
                    f"Layer {name!r} ({type(module).__name__}) cannot be initialised: it has "
                    "parameters and no reset_parameters"
                )
            if isinstance(module, _ConvNd):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
