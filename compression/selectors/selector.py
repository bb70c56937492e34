"""Port: which channels of a site matter most."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compression.coupling import Coupling
from compression.errors import PlanInvalid

Batch = tuple[Tensor, Tensor]
"""`B x C x H x W` float32 inputs and `B` int64 labels."""

Scores = Mapping[str, NDArray[np.float64]]
"""By coupling name: one finite score >= 0 per channel; the lowest are removed first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What selectors may look at beside the model.

    Attributes:
        batches: Labelled batches; may be empty.
        calibration: Preprocessed inputs `B x C x H x W` float32, unlabelled; may be empty.
        seed: Of every sample that a selector draws.
    """

    batches: Sequence[Batch] = ()
    calibration: Sequence[Tensor] = ()
    seed: int = 0

    def labelled(self, selector: str) -> Sequence[Batch]:
        """Return the labelled batches.

        Raises:
            PlanInvalid: There are none; the message names the selector.
        """
        if not self.batches:
            raise PlanInvalid(f"Selector {selector!r} needs labelled batches; there are none")
        return self.batches

    def inputs(self, selector: str) -> Sequence[Tensor]:
        """Return the unlabelled batches.

        Raises:
            PlanInvalid: There are none; the message names the selector.
        """
        if not self.calibration:
            raise PlanInvalid(f"Selector {selector!r} needs calibration inputs; there are none")
        return self.calibration


class Selector(Protocol):
    """Ranks channels. Pure: the same model and evidence give the same scores.

    Scores are compared within one coupling only; how many channels stay is the plan's decision.
    """

    @property
    def needs_labels(self) -> bool:
        """Whether it looks at labelled batches; without them such a selector cannot run."""
        ...

    @property
    def needs_inputs(self) -> bool:
        """Whether it looks at unlabelled inputs; without them such a selector cannot run."""
        ...

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], evidence: Evidence) -> Scores:
        """Score every channel of every coupling.

        Args:
            model: The dense model in eval mode; it is left as it was.
            couplings: What to score.
            evidence: Labelled batches where `needs_labels`, inputs where `needs_inputs`.

        Raises:
            PlanInvalid: Evidence that it needs is absent, or it cannot score a coupling.
        """
        ...


def sum_over_producers(
    values: Mapping[str, Tensor], coupling: Coupling, parameters: Iterable[str] = ("weight",)
) -> NDArray[np.float64]:
    """Add up `values` over everything that a channel is produced with.

    Args:
        values: By parameter name, of the parameter's shape; absent ones count nothing.
        coupling: Its `out` sides are the producing layers, and the norms and depthwise
            convolutions that hand its channels through. An attention layer's own parameters that
            are cut with it count where `values` has them.
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
    for cut in coupling.parameters:
        value = values.get(f"{cut.layer}.{cut.parameter}")
        if value is not None:
            rows = value.movedim(cut.axis, 0).reshape(value.shape[cut.axis], -1).sum(1)
            total += rows.to(torch.float64).numpy()[cut.index].sum(axis=1)
    return total
