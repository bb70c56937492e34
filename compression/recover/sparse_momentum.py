"""Global sparse momentum: the weights that matter least get decay alone and fade to zero.

Reference:
    Ding et al. (2019), "Global Sparse Momentum SGD for Pruning Very Deep Neural Networks",
    https://arxiv.org/abs/1909.12778, equations 8 to 10: the Q weights of the greatest
    `|w dL/dw|`, over all layers, are active and get the gradient of the loss; all others are
    passive and get weight decay only.

Deviations:
    Momentum, weight decay and learning rate are the training loop's (Nesterov's momentum of 0.9;
    the paper has 0.98 without). The paper's decay needs some hundred epochs to bring passive
    weights to zero; so that short trainings arrive as well, passive weights are shrunk by a
    further constant factor per step that leaves `residue` of one that is passive throughout the
    ramp. After `RAMP_SHARE` of the steps the Q weights of the greatest magnitude are kept, all
    others set to zero, and the rest trains under that mask (the paper: one final cut).
    Gradients of masked-out weights are taken away before clipping, not after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.recover.gradual_sparsity import ramp_steps_of
from compression.recover.hook import Hook
from compression.recover.masks import KeepMasks, global_masks, prefixed, trained_weight, unprefixed


class SparseMomentum(Hook):
    """Let all but `kept` weights of the layers fade; the share of each layer finds itself.

    Takes the place of `KeepMasks`.

    Attributes:
        masks: The final masks by layer; empty until they are fixed.
    """

    def __init__(self, layers: Sequence[str], kept: int, *, residue: float = 0.01) -> None:
        if kept < 1:
            raise CompressionError(f"{kept} weights are kept; at least 1 is required")
        if not 0 < residue <= 1:
            raise CompressionError(f"residue is {residue}; it must be in (0, 1]")
        self.masks: dict[str, Tensor] = {}
        self._layers = tuple(layers)
        self._kept = kept
        self._residue = residue
        self._ramp = 0
        self._active: dict[str, Tensor] = {}
        self._fixed: KeepMasks | None = None

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Count the weights.

        Raises:
            CompressionError: A layer is missing, or there are not more weights than are kept.
        """
        weights = sum(trained_weight(model, layer).numel() for layer in self._layers)
        if self._kept >= weights:
            raise CompressionError(
                f"{self._kept} weights are to be kept; the layers have {weights} in all"
            )
        self._ramp = ramp_steps_of(total_steps)
        if not self._ramp:
            self._fix(model)

    def gradients(self, model: nn.Module, step: int) -> None:
        """Leave the gradients of the active weights only."""
        if self._fixed is not None:
            self._fixed.gradients(model, step)
            return
        effects: dict[str, Tensor] = {}
        for layer in self._layers:
            weight = trained_weight(model, layer)
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            effects[layer] = (weight.detach() * gradient).abs()
        total = sum(effect.numel() for effect in effects.values())
        self._active = global_masks(effects, total - self._kept)
        KeepMasks.gradients(KeepMasks(self._active), model, step)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Shrink the passive weights; at the end of the ramp cut them off."""
        if self._fixed is not None:
            self._fixed.after_step(model, step)
            return
        factor = self._residue ** (1 / self._ramp)
        with torch.no_grad():
            for layer, active in self._active.items():
                weight = trained_weight(model, layer)
                weight.copy_(torch.where(active, weight, weight * factor))
        if step + 1 >= self._ramp:
            self._fix(model)

    def finish(self, model: nn.Module) -> None:
        """Hold the masks exactly."""
        if self._fixed is None:
            self._fix(model)
        assert self._fixed is not None
        self._fixed.finish(model)

    def state(self) -> Mapping[str, Tensor]:
        """Return the final masks, once there are any."""
        return prefixed("mask", self.masks)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the masks over."""
        self.masks = unprefixed("mask", state)
        self._fixed = KeepMasks(self.masks) if self.masks else None

    def _fix(self, model: nn.Module) -> None:
        magnitudes = {layer: trained_weight(model, layer).detach().abs() for layer in self._layers}
        total = sum(magnitude.numel() for magnitude in magnitudes.values())
        self.masks = global_masks(magnitudes, total - self._kept)
        self._fixed = KeepMasks(self.masks)
        self._fixed.after_step(model, 0)
