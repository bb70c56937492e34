"""Dynamic network surgery: pruned weights live on in the shadow and may come back.

Reference:
    Guo et al. (2016), "Dynamic Network Surgery for Efficient DNNs",
    https://arxiv.org/abs/1608.04493: equation 2 (the update of dense weights W by the gradient
    at W * T), equation 3 (the mask T: off below a, on above b, as it was between), section 3.3
    (the chance of renewing masks falls as training goes on).

Deviations:
    a and b are 0.9 and 1.1 times mu + c sigma of a layer's magnitudes. The paper sets c by hand;
    here it is solved anew at every renewal for the sparsity wanted, which makes mu + c sigma that
    quantile of the magnitudes. Weight decay sees masked weights as zeros, so the shadow does not
    decay. After `RAMP_SHARE` of the steps the masks are made exact, by magnitude, and fixed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.recover.gradual_sparsity import check_zeros, ramp_steps_of
from compression.recover.hook import Hook
from compression.recover.masks import (
    KeepMasks,
    prefixed,
    trained_weight,
    unprefixed,
    without_smallest,
)

OFF, ON = 0.9, 1.1
"""Thresholds of the hysteresis, in units of mu + c sigma."""

LAST_CHANCE = 0.1
"""Chance of a renewal in the last step before masks are fixed; the first step's is 1."""


def spliced(magnitudes: Tensor, mask: Tensor, zeros: int) -> Tensor:
    """Return the mask after one renewal: off below a, on above b, unchanged between.

    Args:
        magnitudes: Of the dense shadow weights, any shape.
        mask: Bool of that shape.
        zeros: How many magnitudes lie at or below mu + c sigma.
    """
    if zeros <= 0:
        return torch.ones_like(mask)
    threshold = magnitudes.reshape(-1).kthvalue(zeros).values
    kept: Tensor = (mask & (magnitudes >= OFF * threshold)) | (magnitudes > ON * threshold)
    return kept


def renewal_chance(step: int, ramp_steps: int) -> float:
    """Return `1 / (1 + g step)`, which falls from 1 to `LAST_CHANCE` at `ramp_steps`."""
    return 1 / (1 + (1 / LAST_CHANCE - 1) * step / max(1, ramp_steps))


class Splicing(Hook):
    """Train dense shadow weights through masks that prune and splice; end with exact zeros.

    The model itself holds shadow times mask. What the optimizer changes in it, also where the
    mask is off, is carried over to the shadow. Takes the place of `KeepMasks`.

    Attributes:
        masks: What stays at this moment, by layer; final after training.
    """

    def __init__(self, zeros: Mapping[str, int], *, seed: int = 0) -> None:
        self.masks: dict[str, Tensor] = {}
        self._zeros = dict(zeros)
        self._generator = torch.Generator().manual_seed(seed)
        self._shadow: dict[str, Tensor] = {}
        self._ramp = 0
        self._fixed: KeepMasks | None = None

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Take the weights as the first shadow; masks are exact at first.

        Raises:
            CompressionError: A layer is missing or would keep no weight.
        """
        check_zeros(model, self._zeros)
        self._ramp = ramp_steps_of(total_steps)
        for layer in self._zeros:
            self._shadow[layer] = trained_weight(model, layer).detach().clone()
        self._make_exact()
        if self._ramp:
            self._show(model)
        else:
            self._fix(model)

    def gradients(self, model: nn.Module, step: int) -> None:
        """Mask the gradients once masks are fixed; before that, masked weights learn as well."""
        if self._fixed is not None:
            self._fixed.gradients(model, step)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Carry the step over to the shadow, renew masks by chance, and show what they leave."""
        if self._fixed is not None:
            self._fixed.after_step(model, step)
            return
        for layer, shadow in self._shadow.items():
            weight = trained_weight(model, layer).detach()
            shadow += weight - shadow.masked_fill(~self.masks[layer], 0.0)
        chance = float(torch.rand((), generator=self._generator))
        if step + 1 >= self._ramp:
            self._make_exact()
            self._fix(model)
        elif chance < renewal_chance(step, self._ramp):
            for layer, shadow in self._shadow.items():
                self.masks[layer] = spliced(shadow.abs(), self.masks[layer], self._zeros[layer])
            self._show(model)
        else:
            self._show(model)

    def finish(self, model: nn.Module) -> None:
        """Hold the masks exactly."""
        if self._fixed is None:
            self._make_exact()
            self._fix(model)
        assert self._fixed is not None
        self._fixed.finish(model)

    def state(self) -> Mapping[str, Tensor]:
        """Return masks, shadow (none once masks are fixed) and the generator."""
        return {
            **prefixed("mask", self.masks),
            **prefixed("shadow", self._shadow),
            "generator": self._generator.get_state(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take all of it over."""
        self.masks = unprefixed("mask", state)
        self._shadow = unprefixed("shadow", state)
        self._generator.set_state(state["generator"])
        self._fixed = None if self._shadow else KeepMasks(self.masks)

    def _make_exact(self) -> None:
        for layer, shadow in self._shadow.items():
            self.masks[layer] = without_smallest(shadow.abs(), self._zeros[layer])

    def _show(self, model: nn.Module) -> None:
        with torch.no_grad():
            for layer, shadow in self._shadow.items():
                masked = shadow.masked_fill(~self.masks[layer], 0.0)
                trained_weight(model, layer).copy_(masked)

    def _fix(self, model: nn.Module) -> None:
        self._show(model)
        self._fixed = KeepMasks(self.masks)
        self._shadow.clear()
