"""Network slimming: an L1 penalty that drives the scales of unneeded channels to zero.

Reference:
    Liu et al. (2017), "Learning Efficient Convolutional Networks through Network Slimming",
    equation 1, https://arxiv.org/abs/1708.06519: `L + lambda sum |gamma|`, by subgradient; lambda
    is 1e-4 for VGG and 1e-5 for ResNets and DenseNets there. Prune by selector `bn_scale` then.
    Yuan & Lin (2006), "Model Selection and Estimation in Regression with Grouped Variables": the
    group lasso.

Deviations:
    Where several norms scale one channel (a residual stream), their gammas are one group with the
    penalty `lambda sqrt(n) |(gamma_1, ..., gamma_n)|_2`, since they can only go together; for one
    norm that is the paper's. The subgradient at zero is zero. It is added before gradients are
    clipped and is not part of the loss that is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression.coupling import Coupling
from compression.errors import CompressionError
from compression.recover.hook import Hook

LEAST_NORM = 1e-12
"""Below it a group counts as zero."""


class SlimmingPenalty(Hook):
    """Regulariser: adds the subgradient of the penalty to the gradients of the gammas."""

    def __init__(self, strength: float, couplings: Sequence[Coupling] = ()) -> None:
        """Choose the strength and the groups.

        Args:
            strength: lambda, at least 0.
            couplings: Whose channels are penalised, as groups; none: every gamma on its own.

        Raises:
            CompressionError: The strength is negative.
        """
        if not strength >= 0:
            raise CompressionError(
                f"The slimming penalty's strength is {strength}; at least 0 is required"
            )
        self._strength = strength
        self._couplings = tuple(couplings)
        self._groups: list[list[tuple[Tensor, Tensor]]] = []

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Find the affine BatchNorm layers.

        Raises:
            CompressionError: There are none that the couplings touch.
        """
        del total_steps
        scales: dict[str, Tensor] = {
            name: module.weight
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.affine
        }
        if self._couplings:
            groups = [
                [
                    (scales[tap.layer], torch.from_numpy(tap.index))
                    for tap in coupling.taps
                    if tap.side == "out" and tap.layer in scales
                ]
                for coupling in self._couplings
            ]
        else:
            groups = [[(scale, torch.arange(len(scale)).view(-1, 1))] for scale in scales.values()]
        self._groups = [group for group in groups if group]
        if not self._groups:
            raise CompressionError(
                f"Slimming: none of the channels of {type(model).__name__} has an affine BatchNorm"
            )

    @torch.no_grad()
    def gradients(self, model: nn.Module, step: int) -> None:
        """Add `lambda sqrt(n) gamma / |group|` to the gradient of every gamma."""
        del model, step
        for group in self._groups:
            gammas = torch.cat([scale[index] for scale, index in group], dim=1)  # channels x n
            norms = gammas.norm(dim=1, keepdim=True).clamp_min(LEAST_NORM)
            factor = self._strength * gammas.shape[1] ** 0.5 / norms
            for scale, index in group:
                if scale.grad is not None:
                    scale.grad.index_add_(0, index.ravel(), (factor * scale[index]).ravel())
