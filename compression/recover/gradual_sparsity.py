"""Gradual magnitude pruning: zeros grow along a cubic while the network trains.

Reference:
    Zhu & Gupta (2017), "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", https://arxiv.org/abs/1710.01878, equation 1 with s_i = 0, t_0 = 0:
    `s_t = s_f (1 - (1 - t/T)^3)`.

Deviations:
    The masks become final after `RAMP_SHARE` of the steps; the rest trains under fixed masks.
    Pruned weights get no gradients, and a later mask is chosen among all weights, so that a
    weight once zero stays zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compression.errors import CompressionError
from compression.recover.hook import Hook
from compression.recover.masks import (
    KeepMasks,
    Masks,
    prefixed,
    trained_weight,
    unprefixed,
    without_smallest,
)

RAMP_SHARE = 0.75
"""Share of the steps in which masks still change: the one-cycle schedule's rate is below a fifth
of its peak afterwards, too little to replace what a late mask takes."""


def cubic_sparsity(step: int, ramp_steps: int, final: float) -> float:
    """Return the share of zeros wanted at a step: 0 at step 0, `final` from `ramp_steps` on.

    >>> [round(cubic_sparsity(t, 4, 0.8), 4) for t in (0, 1, 2, 4, 9)]
    [0.0, 0.4625, 0.7, 0.8, 0.8]
    """
    left = 1 - min(1.0, step / max(1, ramp_steps))
    return final * (1 - left**3)


def ramp_steps_of(total_steps: int) -> int:
    """Return after how many steps of a training masks become final; before its last one."""
    return max(0, min(round(RAMP_SHARE * total_steps), total_steps - 1))


def check_zeros(model: nn.Module, zeros: Mapping[str, int]) -> None:
    """Check that every layer exists and keeps a weight.

    Raises:
        CompressionError: It does not.
    """
    for layer, wanted in zeros.items():
        weights = trained_weight(model, layer).numel()
        if not 0 <= wanted < weights:
            raise CompressionError(
                f"Layer {layer!r} has {weights} weights; {wanted} zeros were asked for"
            )


class GradualSparsity(Hook):
    """Reach exactly `zeros` of every layer by magnitude, a few more every `every` steps.

    It starts from a dense network, and takes the place of `KeepMasks`.
    """

    def __init__(self, zeros: Mapping[str, int], *, every: int = 10) -> None:
        if every < 1:
            raise CompressionError(f"every is {every} steps; at least 1 is required")
        self._zeros = dict(zeros)
        self._every = every
        self._ramp = 0
        self._keep = KeepMasks({})

    @property
    def masks(self) -> Masks:
        """What stays at this moment."""
        return self._keep.masks

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Check the layers.

        Raises:
            CompressionError: One is missing or would keep no weight.
        """
        check_zeros(model, self._zeros)
        self._ramp = ramp_steps_of(total_steps)

    def gradients(self, model: nn.Module, step: int) -> None:
        """Mask the gradients."""
        self._keep.gradients(model, step)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Renew the masks where it is time to, and apply them."""
        done = step + 1
        if done <= self._ramp and (done % self._every == 0 or done == self._ramp):
            self._renew(model, cubic_sparsity(done, self._ramp, 1.0))
        self._keep.after_step(model, step)

    def finish(self, model: nn.Module) -> None:
        """Hold the whole number of zeros, also where there were no steps or too few."""
        found = {layer: int((~mask).sum()) for layer, mask in self.masks.items()}
        if found != self._zeros:
            self._renew(model, 1.0)
        self._keep.finish(model)

    def state(self) -> Mapping[str, Tensor]:
        """Return the masks."""
        return prefixed("mask", self.masks)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the masks over."""
        self._keep = KeepMasks(unprefixed("mask", state))

    def _renew(self, model: nn.Module, share: float) -> None:
        self._keep = KeepMasks(
            {
                layer: without_smallest(
                    trained_weight(model, layer).detach().abs(), round(share * wanted)
                )
                for layer, wanted in self._zeros.items()
            }
        )
