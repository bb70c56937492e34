"""Purification: channels that training has left nearly zero are dropped, as long as it is free.

Reference:
    Liu et al. (2020), "AutoCompress: An Automatic DNN Structured Pruning Framework for Ultra-High
    Compression Rates", AAAI, https://arxiv.org/abs/1907.03141, section on purification: after
    ADMM, filters and columns of small norm are removed, and with a filter the column of the next
    layer that reads it.

Deviations:
    Whole channels only, of coupled layers together. The strength of a channel is the norm of the
    filters that make it, times what BatchNorm multiplies them by (scale over running deviation),
    times the norm of the columns that read it; the paper gives each its own threshold. One
    threshold, relative to the strongest channel of the coupling, serves the whole network: the
    largest of a grid whose damage, after BatchNorm recalibration, is within a limit. A channel
    whose filters are zero still hands on its BatchNorm's bias; what that costs is part of the
    damage. The number of channels is rounded up to what a site may keep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compression.coupling import Coupling, Indices
from compression.errors import CompressionError
from compression.selectors.selector import sum_over_producers
from compression.surgery import cuts_of, thin

THRESHOLDS = (5e-2, 2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
"""Tried in this order: the largest first."""

MOST_DAMAGE = 0.1
"""Points of accuracy that purification may cost."""

Strengths = Mapping[str, NDArray[np.float64]]
"""By coupling: one number in [0, 1] per channel; the strongest has 1."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Purified:
    """What purification left.

    Attributes:
        model: Thinner, recalibrated; the very model it was given where nothing was removed.
        kept: Ascending channels that stay, for every coupling that lost some.
        threshold: That was used; 0 where nothing was removed.
        removed: Channels removed, over all couplings.
        before: Score of the model it was given, in points.
        after: Score of `model`.
    """

    model: nn.Module
    kept: Mapping[str, tuple[int, ...]]
    threshold: float
    removed: int
    before: float
    after: float


def strengths(model: nn.Module, couplings: Sequence[Coupling]) -> Strengths:
    """Return how strong every channel is, relative to the strongest of its coupling.

    The product of the three norms that the module's docstring names; norms over several layers
    are Euclidean. A coupling without layers that read it, or without BatchNorm, has 1 for that
    factor. Where all channels are zero, all strengths are 1: none is weaker than another.

    Args:
        model: In eval mode.
        couplings: Of this model.
    """
    modules = dict(model.named_modules())
    made = {
        f"{name}.weight": module.weight.detach().double().square()
        for name, module in modules.items()
        if isinstance(module, _ConvNd | nn.Linear)
    }
    for name, parameter in model.named_parameters():
        if name.endswith("in_proj_weight"):
            made[name] = parameter.detach().double().square()
    scaled = {
        f"{name}.weight": _scale(module).square()
        for name, module in modules.items()
        if isinstance(module, _NormBase)
    }
    found = {}
    for coupling in couplings:
        strength = np.sqrt(sum_over_producers(made, coupling))
        for factor in (
            np.sqrt(sum_over_producers(scaled, coupling)),
            np.sqrt(_columns(made, coupling)),
        ):
            strength = strength * factor if factor.any() else strength
        most = float(strength.max())
        found[coupling.name] = strength / most if most > 0 else np.ones(coupling.channels)
    return found


def _scale(norm: _NormBase) -> Tensor:
    """Return what a norm multiplies each channel by: 1 where it keeps no statistics."""
    weight = norm.weight.detach() if norm.weight is not None else torch.ones(norm.num_features)
    if norm.running_var is None:
        return weight.double()
    return weight.double() / (norm.running_var.double() + norm.eps).sqrt()


def _columns(squares: Mapping[str, Tensor], coupling: Coupling) -> NDArray[np.float64]:
    total = np.zeros(coupling.channels)
    for tap in coupling.taps:
        square = squares.get(f"{tap.layer}.weight")
        if tap.side == "in" and square is not None:
            total += square.movedim(1, 0).flatten(1).sum(1).numpy()[tap.index].sum(axis=1)
    return total


def channels_above(
    found: Strengths, threshold: float, allowed: Mapping[str, Sequence[int]]
) -> dict[str, Indices]:
    """Return the channels that stay, ascending, for every coupling that loses some.

    As many as are at least `threshold` strong, rounded up to the next number allowed; the
    strongest stay, of equal ones the first.

    Args:
        found: Strengths.
        threshold: In [0, 1].
        allowed: By coupling, numbers of channels that may stay; couplings without lose none.
    """
    kept = {}
    for name, strength in found.items():
        strong = int(np.count_nonzero(strength >= threshold))
        count = min(
            (n for n in allowed.get(name, ()) if n >= max(1, strong)), default=len(strength)
        )
        if count < len(strength):
            kept[name] = np.sort(np.argsort(-strength, kind="stable")[:count])
    return kept


def purify(
    model: nn.Module,
    couplings: Sequence[Coupling],
    allowed: Mapping[str, Sequence[int]],
    *,
    recalibrate: Callable[[nn.Module], None],
    score: Callable[[nn.Module], float],
    thresholds: Sequence[float] = THRESHOLDS,
    most_damage: float = MOST_DAMAGE,
) -> Purified:
    """Drop the channels below the largest threshold whose damage is within the limit.

    Args:
        model: Trained, in eval mode; left as it was.
        couplings: Of this model.
        allowed: By coupling, numbers of channels that may stay.
        recalibrate: Renews a model's BatchNorm statistics in place.
        score: Returns a model's accuracy in points, on data that is not held out.
        thresholds: Tried from the largest on.
        most_damage: Points that it may cost, at least 0.

    Raises:
        CompressionError: The limit is below 0.
    """
    if most_damage < 0:
        raise CompressionError(f"Purification's most_damage is {most_damage}; at least 0")
    found, before = strengths(model, couplings), score(model)
    tried: set[tuple[tuple[str, int], ...]] = set()
    for threshold in sorted(thresholds, reverse=True):
        kept = channels_above(found, threshold, allowed)
        counts = tuple((name, len(channels)) for name, channels in kept.items())
        if not counts or counts in tried:
            continue
        tried.add(counts)
        candidate = thin(model, cuts_of(model, couplings, kept))
        recalibrate(candidate)
        after = score(candidate)
        # Equal but for rounding is within the limit.
        if before - after <= most_damage + 1e-9:
            return Purified(
                model=candidate,
                kept={name: tuple(int(c) for c in channels) for name, channels in kept.items()},
                threshold=threshold,
                removed=sum(len(found[name]) - count for name, count in counts),
                before=before,
                after=after,
            )
    return Purified(model=model, kept={}, threshold=0.0, removed=0, before=before, after=before)
