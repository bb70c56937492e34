"""One set of weights for all widths: the sandwich rule with in-place distillation.

Reference:
    J. Yu, T. Huang: Universally Slimmable Networks and Improved Training Techniques, ICCV 2019,
    https://arxiv.org/abs/1903.05134: sandwich rule (section 3.2), in-place distillation (3.3),
    BatchNorm statistics after training (3.1).

Deviations:
    * Widths are drawn by site, each on its own, not one share for the whole network.
    * Training begins with the weights of a trained network, and its channels are ordered by their
      importance there; in the paper with random weights, where the order means nothing.
    * The gradients of all networks of a step are averaged, not added up: the learning rate then
      means the same for any number of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compression.apply import ApplyContext
from compression.backend import Backend
from compression.coupling import Indices
from compression.errors import CompressionError
from compression.supernets.supernet import Batch, Supernet, soft_cross_entropy
from compression.supernets.widths import WidthChoices, Widths


class SharedWeights(Supernet):
    """A slimmable network: narrow networks use the first channels of the wide one."""

    def __init__(
        self,
        context: ApplyContext,
        choices: WidthChoices,
        order: Mapping[str, Indices],
        *,
        networks: int = 4,
    ) -> None:
        """Start from the dense weights.

        Args:
            context: Of the dense network.
            choices: Widths to train at.
            order: Channels of each site, the last to go first.
            networks: Of one step: the widest, the narrowest and random ones; at least 2.
        """
        super().__init__(context, choices, order)
        if networks < 2:
            raise CompressionError(f"A sandwich has {networks} networks; at least 2 are required")
        self._networks = networks

    def weights(self, widths: Widths) -> dict[str, Tensor]:
        """Return the one set of parameters."""
        del widths
        return dict(self.model.named_parameters())

    def accumulate(self, batch: Batch, generator: torch.Generator, backend: Backend) -> float:
        """Add the gradients of one sandwich; return the widest network's loss.

        The widest network learns the targets, the others its outputs.
        """
        widest = self.outputs(self.choices.widest(), batch.inputs, backend)
        loss = soft_cross_entropy(widest, batch.targets)
        (loss / self._networks).backward()  # type: ignore[no-untyped-call]
        outputs = widest.detach().softmax(1)
        randoms = [self.choices.draw(generator) for _ in range(self._networks - 2)]
        for widths in (self.choices.narrowest(), *randoms):
            imitated = soft_cross_entropy(self.outputs(widths, batch.inputs, backend), outputs)
            (imitated / self._networks).backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def terms(self) -> dict[str, Any]:
        """Return what must be the same where a training goes on."""
        return {**super().terms(), "networks": self._networks}
