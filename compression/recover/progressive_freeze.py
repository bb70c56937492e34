"""Progressive freezing: weights are quantized in portions while the others make up for it.

Reference:
    Zhou et al. (2017), "Incremental Network Quantization", section 3.2,
    https://arxiv.org/abs/1702.03044: the largest of the free weights first, until shares of 50,
    75, 87.5 and 100 % are quantized and frozen.
    Xu et al. (2018), "Deep Neural Network Compression with Single and Multiple Level
    Quantization", https://arxiv.org/abs/1803.03289: clusters with the largest quantization loss
    first (SLQ).

Deviations:
    SLQ freezes whole clusters; here the last one of a portion is cut, largest weights first, so
    that shares are met exactly. Portions begin at equal distances over one training, under one
    schedule of the learning rate; after the last one only biases and normalisations learn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.primitives.weight_grids.grid import HeldWeight
from compression.primitives.weight_layers import weight_layer
from compression.recover.hook import Hook
from compression.recover.masks import prefixed, unprefixed

SHARES = (0.5, 0.75, 0.875, 1.0)


@dataclasses.dataclass(slots=True, eq=False)
class _Frozen:
    """Which weights of a layer are frozen, and at what."""

    where: Tensor
    at: Tensor


class ProgressiveFreeze(Hook):
    """Freezes ever more weights of each layer on its grid; the others are float and learn.

    Args:
        layers: Grids and float weights to start from, by the layer's dotted path. Grids stay as
            they are.
        shares: Of each layer's weights that are frozen after each portion; ascending, in (0, 1],
            the last is 1.
        order: What is frozen first: the largest weights, or clusters (weights of one value of the
            grid) with the largest quantization loss.

    Raises:
        CompressionError: Shares do not ascend to 1.
    """

    def __init__(
        self,
        layers: Mapping[str, HeldWeight],
        shares: Sequence[float] = SHARES,
        order: Literal["magnitude", "loss"] = "magnitude",
    ) -> None:
        ascending = all(a < b for a, b in zip((0.0, *shares), shares, strict=False))
        if not shares or not ascending or shares[-1] != 1.0:
            raise CompressionError(f"shares is {tuple(shares)}; it must ascend from above 0 to 1")
        self._layers = layers
        self._shares = tuple(shares)
        self._order = order
        self._frozen: dict[str, _Frozen] = {}
        self._total = 0

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Put the float weights in place and freeze the first portion."""
        self._total = total_steps
        with torch.no_grad():
            for name, held in self._layers.items():
                weight = weight_layer(model, name).weight
                weight.copy_(held.origin)
                zeros = held.zeros
                where = torch.zeros_like(weight, dtype=torch.bool) if zeros is None else zeros
                self._frozen[name] = _Frozen(where.clone(), torch.zeros_like(weight))
        self._freeze(model, self._shares[0])

    def gradients(self, model: nn.Module, step: int) -> None:
        """Take the gradient from frozen weights."""
        for name, frozen in self._frozen.items():
            gradient = weight_layer(model, name).weight.grad
            if gradient is not None:
                gradient.masked_fill_(frozen.where, 0.0)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Put frozen weights back (momentum moved them), and freeze more where it is time."""
        with torch.no_grad():
            for name, frozen in self._frozen.items():
                weight = weight_layer(model, name).weight
                weight.copy_(torch.where(frozen.where, frozen.at, weight))
        for index, share in enumerate(self._shares):
            if index and step + 1 == math.ceil(index * self._total / len(self._shares)):
                self._freeze(model, share)

    def finish(self, model: nn.Module) -> None:
        """Freeze what is left."""
        self._freeze(model, 1.0)

    def state(self) -> Mapping[str, Tensor]:
        """Return which weights are frozen, and at what."""
        where = {name: frozen.where for name, frozen in self._frozen.items()}
        at = {name: frozen.at for name, frozen in self._frozen.items()}
        return prefixed("where", where) | prefixed("at", at)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with those."""
        where, at = unprefixed("where", state), unprefixed("at", state)
        for name, frozen in self._frozen.items():
            frozen.where.copy_(where[name])
            frozen.at.copy_(at[name])

    def frozen_share(self, name: str) -> float:
        """Return the share of a layer's weights that are frozen now."""
        return float(self._frozen[name].where.double().mean())

    def _freeze(self, model: nn.Module, share: float) -> None:
        with torch.no_grad():
            for name, held in self._layers.items():
                weight, frozen = weight_layer(model, name).weight, self._frozen[name]
                # A frozen weight may not be projected again: grids need not be idempotent.
                target = torch.where(frozen.where, frozen.at, held.project(weight))
                wanted = math.ceil(share * weight.numel()) - int(frozen.where.sum())
                if wanted > 0:
                    order = self._ordered(weight, target)
                    free = order[~frozen.where.reshape(-1)[order]]
                    frozen.where.reshape(-1)[free[:wanted]] = True
                    frozen.at.copy_(torch.where(frozen.where, target, frozen.at))
                    weight.copy_(torch.where(frozen.where, frozen.at, weight))

    def _ordered(self, weight: Tensor, target: Tensor) -> Tensor:
        """Return the weights' flat indices, those to freeze first in front."""
        flat, aim = weight.reshape(-1), target.reshape(-1)
        order = flat.abs().argsort(descending=True, stable=True)
        if self._order == "magnitude":
            return order
        _, cluster = torch.unique(aim, return_inverse=True)
        losses = torch.bincount(cluster, weights=(flat - aim).square().double())
        return order[losses[cluster][order].argsort(descending=True, stable=True)]
