"""Port: which channels of a site matter most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compression.coupling import Coupling

Batch = tuple[Tensor, Tensor]
"""`B x C x H x W` float32 inputs and `B` int64 labels."""

Scores = Mapping[str, NDArray[np.float64]]
"""By coupling name: one finite score >= 0 per channel; the lowest are removed first."""


class Selector(Protocol):
    """Ranks channels. Pure: the same model and batches give the same scores.

    Scores are compared within one coupling only; how many channels stay is the plan's decision.
    """

    @property
    def needs_labels(self) -> bool:
        """Whether it looks at labelled batches; without them such a selector cannot run."""
        ...

    def scores(
        self, model: nn.Module, couplings: Sequence[Coupling], batches: Sequence[Batch]
    ) -> Scores:
        """Score every channel of every coupling.

        Args:
            model: The dense model in eval mode; it is left as it was.
            couplings: What to score.
            batches: Used where `needs_labels`.
        """
        ...


def sum_over_producers(
    values: Mapping[str, Tensor], coupling: Coupling, parameters: Iterable[str] = ("weight",)
) -> NDArray[np.float64]:
    """Add up `values` over everything that a channel is produced with.

    Args:
        values: By parameter name, of the parameter's shape; absent ones count nothing.
        coupling: Its `out` sides are the producing layers, and the norms and depthwise
            convolutions that hand its channels through.
        parameters: Which parameters of these layers count.

    Returns:
        One sum per channel.
    """
    total = np.zeros(coupling.channels)
    for tap in coupling.taps:
        if tap.side == "in":
            continue
        for parameter in parameters:
            value = values.get(f"{tap.layer}.{parameter}")
            # A PReLU's single slope belongs to no channel.
            if value is None or (value.numel() == 1 and coupling.channels > 1):
                continue
            per_position = value.flatten(1).sum(1) if value.dim() > 1 else value
            total += per_position.to(torch.float64).numpy()[tap.index].sum(axis=1)
    return total
