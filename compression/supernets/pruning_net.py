"""A network that generates the weights of a pruned network from its widths.

Reference:
    Z. Liu et al.: MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning, ICCV
    2019, https://arxiv.org/abs/1903.10258, section 3.1: the weights of a layer are those of two
    fully-connected layers on the network encoding vector, cropped to the widths.

Deviations:
    * The encoding of a layer is read off the coupling of any network: the kept shares of its own
      outputs and inputs, and of every site inside its block.
    * `residual`: what is generated is added to the trained weights of the dense network, and is
      zero at first. A few hundred steps then do what takes tens of epochs from nothing.
    * Without it the generated weights of the widest network start with the variance 2 / fan-in.
    * One BatchNorm per layer, whose scale and shift are trained and cropped; its statistics are
      taken anew of every network. Only convolutions are generated; linear layers are cropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from compression.apply import ApplyContext
from compression.backend import Backend
from compression.coupling import Coupling, Indices
from compression.errors import CompressionError
from compression.supernets.supernet import Batch, Supernet, soft_cross_entropy
from compression.supernets.widths import WidthChoices, Widths

HIDDEN = 32
"""Width between the two fully-connected layers."""

MOST_PARAMETERS = 120_000_000
"""Of all generators together: with gradient and momentum 1.4 GB."""


class PruningNet(Supernet):
    """Generates the weights of every convolution that widths touch."""

    def __init__(
        self,
        context: ApplyContext,
        choices: WidthChoices,
        order: Mapping[str, Indices],
        *,
        generator: torch.Generator,
        residual: bool = True,
    ) -> None:
        """Draw the first weights.

        Args:
            context: Of the dense network.
            choices: Widths to train at.
            order: Channels of each site, the last to go first.
            generator: Of the first weights.
            residual: Whether generated weights are added to the dense network's.

        Raises:
            CompressionError: No convolution is touched, or the generators are too large.
        """
        super().__init__(context, choices, order)
        self.encodings = encodings(self.model, self.couplings)
        self._residual = residual
        self._channels = {site: c.channels for site, c in self.couplings.items()}
        sizes = [self.model.get_submodule(name).get_parameter("weight").numel()
                 for name in self.encodings]  # fmt: skip
        count = sum((HIDDEN + 1) * size for size in sizes)
        if not sizes:
            raise CompressionError("No convolution has channels that could be pruned")
        if count > MOST_PARAMETERS:
            raise CompressionError(
                f"A PruningNet of this model has {count} parameters; {MOST_PARAMETERS} are "
                "allowed. A supernet of shared weights needs no more than the model"
            )
        made = []
        for name, sites in self.encodings.items():
            weight = self.model.get_submodule(name).get_parameter("weight")
            weight.requires_grad_(False)
            made.append(WeightGenerator(len(sites), weight, generator, zero=residual))
        self.generators = nn.ModuleList(made)

    def weights(self, widths: Widths) -> dict[str, Tensor]:
        """Return the parameters for these widths, those of convolutions generated."""
        found: dict[str, Tensor] = dict(self.model.named_parameters())
        for generate, (layer, sites) in zip(self.generators, self.encodings.items(), strict=True):
            kept = [widths.get(site, self._channels[site]) / self._channels[site] for site in sites]
            name = f"{layer}.weight"
            dense = found[name]
            made = generate(torch.tensor(kept)).view(dense.shape)
            found[name] = dense + made if self._residual else made
        return found

    def accumulate(self, batch: Batch, generator: torch.Generator, backend: Backend) -> float:
        """Add the gradients of one network of random widths; return its loss."""
        widths = self.choices.draw(generator)
        loss = soft_cross_entropy(self.outputs(widths, batch.inputs, backend), batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def terms(self) -> dict[str, Any]:
        """Return what must be the same where a training goes on."""
        return {**super().terms(), "residual": self._residual}


class WeightGenerator(nn.Module):
    """Two fully-connected layers from an encoding to all weights of one convolution."""

    def __init__(
        self, shares: int, weight: Tensor, generator: torch.Generator, *, zero: bool
    ) -> None:
        """Draw the first weights.

        Args:
            shares: Length of the encoding.
            weight: Of the convolution.
            generator: Of the first weights.
            zero: Generate zeros at first; else weights as He et al. (2015) draw them.
        """
        super().__init__()
        self.fc1 = nn.Linear(shares, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, weight.numel())
        with torch.no_grad():
            for layer in (self.fc1, self.fc2):
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-bound, bound, generator=generator)
            deviation = float(self(torch.ones(shares)).std()) if weight.numel() > 1 else 1.0
            wanted = 0.0 if zero else (2.0 / weight[0].numel()) ** 0.5
            for parameter in (self.fc2.weight, self.fc2.bias):
                parameter.mul_(wanted / deviation)

    def forward(self, encoding: Tensor) -> Tensor:
        """Return the flat weights for an encoding."""
        weights: Tensor = self.fc2(functional.relu(self.fc1(encoding)))
        return weights


def encodings(model: nn.Module, couplings: Mapping[str, Coupling]) -> dict[str, tuple[str, ...]]:
    """Return the sites whose kept shares encode each convolution, in the order of its layers.

    Those of its own outputs, then of its inputs, then of the rest of its block: the innermost
    module around it that is neither the whole network nor a mere sequence.

    Args:
        model: The dense network.
        couplings: By site, in forward order.
    """
    out: dict[str, list[str]] = {}
    into: dict[str, list[str]] = {}
    blocks: dict[str, list[str]] = {}
    for site, coupling in couplings.items():
        for tap in coupling.taps:
            (out if tap.side == "out" else into).setdefault(tap.layer, []).append(site)
            block = _block_of(model, tap.layer)
            if block:
                blocks.setdefault(block, []).append(site)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) and (name in out or name in into):
            around = blocks.get(_block_of(model, name), [])
            found[name] = tuple(dict.fromkeys([*out.get(name, []), *into.get(name, []), *around]))
    return found


def _block_of(model: nn.Module, layer: str) -> str:
    """Return the path of the block around a layer; empty where there is none."""
    path = layer.rpartition(".")[0]
    while path and isinstance(model.get_submodule(path), nn.Sequential | nn.ModuleList):
        path = path.rpartition(".")[0]
    return path
