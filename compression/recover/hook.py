"""Port: what takes part in training beside the loss: invariants that must hold, and regularisers.

There is one training loop (`compression.recover.training`). Everything that fine-tunes under a
mask, a codebook, a rank, a penalty or fake quantization is a hook of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class Hook:
    """Takes part in every step of a training; this one does nothing.

    Called in this order: `start` once; at each step `penalty` (after the loss was computed),
    `gradients` (after backward and before clipping) and `after_step` (after the optimizer's
    step); `finish` once. The model is the one that is trained, in train mode; a hook finds its
    layers by `model.get_submodule(name)`.

    Hooks run in the order of the sequence that the training loop was given, `finish` in reverse
    order. A hook is used for one training only.

    An interrupted training goes on with fresh hooks: after `start` on a model of the same
    structure they get by `load_state` what `state` gave; the model has its weights by then.
    """

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Prepare; may parametrize layers (`finish` undoes it)."""

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """Return a scalar that is added to the loss, or None."""
        return None

    def gradients(self, model: nn.Module, step: int) -> None:
        """Change the parameters' gradients in place."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change the parameters in place, under `torch.no_grad()`."""

    def finish(self, model: nn.Module) -> None:
        """Leave the model in its final, plain form: the invariant holds exactly."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what changes from step to step, beside the model's parameters and buffers."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned in the interrupted training."""
