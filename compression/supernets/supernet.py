"""What supernets have in common: full-size weights for any widths, and the cropped network.

A network of given widths is the dense one with only the channels that come first in a fixed order,
at each site. The crop is the engine's own surgery on the network's structure, and the same slices,
differentiable, of its parameters: training sees the very networks that `apply` makes later.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from compression.apply import ApplyContext
from compression.backend import Backend
from compression.coupling import Coupling, Indices
from compression.supernets.widths import WidthChoices, Widths, kept_channels
from compression.surgery import Cut, cuts_of, thin


class Batch(NamedTuple):
    """What one step learns from.

    Attributes:
        inputs: `B x C x H x W` float32.
        targets: `B x classes`: the probabilities that the outputs should have.
    """

    inputs: Tensor
    targets: Tensor


class Supernet(nn.Module, abc.ABC):
    """A dense network whose weights depend on the widths they are for.

    Attributes:
        model: The dense network.
        couplings: By site.
        order: Channels of each site, the last to go first.
        choices: Widths to train at.
        classes: Number of outputs.
    """

    def __init__(
        self, context: ApplyContext, choices: WidthChoices, order: Mapping[str, Indices]
    ) -> None:
        super().__init__()
        self.model: nn.Module = copy.deepcopy(context.model)
        self.couplings: Mapping[str, Coupling] = context.module.rankings.couplings
        self.order = {site: order[site] for site in choices.counts}
        self.choices = choices
        self.classes = int(context.survey.summary["num_classes"])

    @abc.abstractmethod
    def weights(self, widths: Widths) -> dict[str, Tensor]:
        """Return the full-size parameters for these widths, by name, with their gradients' way."""

    @abc.abstractmethod
    def accumulate(self, batch: Batch, generator: torch.Generator, backend: Backend) -> float:
        """Add one step's gradients; return the loss that is reported.

        Args:
            batch: Of this step.
            generator: Of the widths.
            backend: How to compute.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the widest network."""
        return self.outputs(self.choices.widest(), x, Backend())

    def outputs(self, widths: Widths, x: Tensor, backend: Backend) -> Tensor:
        """Return the outputs of the network of these widths, `B x classes`, float32.

        In training, BatchNorm layers use the batch's statistics; running ones are not touched.
        """
        cuts = self._cuts(widths)
        cropped = Bound(thin(self.model, cuts), crop(self.model, self.weights(widths), cuts))
        return backend.forward(cropped, x)

    def full_size(self, widths: Widths) -> nn.Module:
        """Return the dense network, in eval mode, with the weights for these widths.

        Removing the other channels of `order` leaves the network that training saw. Running
        statistics are those of `model`: they fit no widths but perhaps the widest.
        """
        made = copy.deepcopy(self.model).eval()
        with torch.no_grad():
            parameters = dict(made.named_parameters())
            for name, weight in self.weights(widths).items():
                parameters[name].copy_(weight)
        for parameter in made.parameters():
            parameter.requires_grad_(True)
        return made

    def terms(self) -> dict[str, Any]:
        """Return what must be the same where a training goes on, as JSON data."""
        return {"supernet": type(self).__name__, "choices": self.choices.to_json()}

    def _cuts(self, widths: Widths) -> dict[str, Cut]:
        kept = kept_channels(self.couplings, self.order, widths)
        return cuts_of(self.model, self.couplings.values(), kept)


class Bound(nn.Module):
    """A structure that computes with other parameters than its own."""

    def __init__(self, structure: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._structure = structure
        self._weights = dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return the structure's outputs."""
        outputs: Tensor = functional_call(self._structure, self._weights, (x,))
        return outputs


def crop(
    model: nn.Module, weights: Mapping[str, Tensor], cuts: Mapping[str, Cut]
) -> dict[str, Tensor]:
    """Return what the cuts leave of full-size parameters; gradients flow back into them.

    Args:
        model: The dense network.
        weights: Its parameters, or others of their shapes, by name.
        cuts: By layer.
    """
    cropped = dict(weights)
    for layer, cut in cuts.items():
        shared = isinstance(model.get_submodule(layer), nn.PReLU)
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name not in cropped or (shared and cropped[name].numel() == 1):
                continue
            if cut.kept_out is not None:
                cropped[name] = cropped[name].index_select(0, torch.from_numpy(cut.kept_out))
            if cut.kept_in is not None and name.endswith("weight"):
                cropped[name] = cropped[name].index_select(1, torch.from_numpy(cut.kept_in))
        for own, (axis, kept) in cut.parameters.items():
            name = f"{layer}.{own}"
            cropped[name] = cropped[name].index_select(axis, torch.from_numpy(kept))
    return cropped


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy with target probabilities, `B x classes` each."""
    return -(targets * functional.log_softmax(logits, 1)).sum(1).mean()
