"""A model whose widths and depths are weighted mixtures: the network that the search trains.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019,
    section 3.1, https://arxiv.org/abs/1905.09717.

Deviations:
    * The channels that a width keeps are the first in a fixed order of importance, not the first
      as they come: the weights are trained already.
    * A width is what the *consumers* of a coupling group read. Features are linear in what a
      consumer reads, so that mixing two widths of them is mixing the columns of its weights: exact
      for whatever couples, and the feature maps are never copied.
    * With `zeros` features of the smaller width are filled up with zeros instead of interpolated:
      interpolation mixes channels that trained weights tell apart. `interpolate` is the paper's.
    * One BatchNorm serves all widths of a layer. A channel's own statistics depend only on the
      widths before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.coupling import Coupling, Indices
from compression.errors import CompressionError
from compression.supernets.channel_interpolation import interpolation_matrix
from compression.supernets.gumbel import Pair
from compression.supernets.width_depth_choices import DepthChoice, WidthChoice

Alignment = Literal["zeros", "interpolate"]
ALIGNMENTS: tuple[Alignment, ...] = ("zeros", "interpolate")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What one forward pass is made of.

    Attributes:
        widths: By site, two widths and their weights.
        depths: For each depth choice one weight per candidate, summing to one.
    """

    widths: Mapping[str, Pair]
    depths: Sequence[Tensor]


class WidthDepthNetwork(nn.Module):
    """Runs a model under the mixture in `mixture`; the whole model where that is None.

    Attributes:
        model: Whose weights are trained.
        mixture: Of the next forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        couplings: Mapping[str, Coupling],
        order: Mapping[str, Indices],
        widths: Sequence[WidthChoice],
        depths: Sequence[DepthChoice],
        alignment: Alignment,
    ) -> None:
        """Prepare the tables.

        Args:
            model: Kept, not copied; hooks are registered on its blocks until `close`.
            couplings: By site.
            order: By site, its channels, most important first.
            widths: What sites choose from.
            depths: What chains of blocks choose from.
            alignment: How features of the smaller width are filled up.

        Raises:
            CompressionError: A site is unknown, or the alignment has no such name.
        """
        super().__init__()
        if alignment not in ALIGNMENTS:
            raise CompressionError(
                f"Alignment is {alignment!r}; choose from {', '.join(ALIGNMENTS)}"
            )
        self.model = model
        self.mixture: Mixture | None = None
        self._widths = {choice.site: choice for choice in widths}
        self._alignment = alignment
        # By layer: the sites it reads, each with `channels x m` positions, most important first.
        self._reads: dict[str, list[tuple[str, Tensor]]] = {}
        for site in self._widths:
            if site not in couplings:
                raise CompressionError(f"Site {site!r} is unknown or frozen; it has no widths")
            for tap in couplings[site].taps:
                if tap.side == "in":
                    index = torch.from_numpy(tap.index[order[site]])
                    self._reads.setdefault(tap.layer, []).append((site, index))
        self._stages = [_Stage(self, number, choice) for number, choice in enumerate(depths)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of `B x C x H x W` inputs."""
        mixture = self.mixture
        if mixture is None:
            whole: Tensor = self.model(x)
            return whole
        # The mixture of weights is computed in float32, whatever the layers compute in.
        with torch.autocast("cpu", enabled=False):
            weights = self._mixed_weights(mixture)
        mixed: Tensor = functional_call(self.model, weights, (x,))
        return mixed

    def _mixed_weights(self, mixture: Mixture) -> dict[str, Tensor]:
        aligned = {site: self._matrix(site, pair) for site, pair in mixture.widths.items()}
        weights: dict[str, Tensor] = {}
        for layer, reads in self._reads.items():
            weight: Tensor = self.model.get_submodule(layer).get_parameter("weight")
            for site, index in reads:
                weight = _mixed(weight, index, aligned[site])
            weights[f"{layer}.weight"] = weight
        return weights

    def close(self) -> None:
        """Leave the model without hooks."""
        for stage in self._stages:
            stage.close()

    def _matrix(self, site: str, pair: Pair) -> Tensor:
        """Return what is read of the channels in their order: a vector of factors, or a matrix."""
        candidates = self._widths[site].candidates
        kept = [candidates[index] for index in pair.indices]
        shares = pair.weights.to(torch.float32)
        channels = candidates[-1]
        if self._alignment == "zeros":
            place = torch.arange(channels)
            inside = torch.stack([place < keep for keep in kept]).to(shares.dtype)
            return shares @ inside
        matrix = torch.zeros(channels, channels)
        for share, keep in zip(shares, kept, strict=True):
            part = torch.zeros(channels, channels)
            part[: kept[-1], :keep] = interpolation_matrix(keep, kept[-1])
            matrix = matrix + share * part
        return matrix


def _mixed(weight: Tensor, index: Tensor, aligned: Tensor) -> Tensor:
    """Return a consumer's weight for features that are aligned before it reads them."""
    if aligned.dim() == 1:
        factors = torch.ones(weight.shape[1]).index_put(
            (index.reshape(-1),), aligned.repeat_interleave(index.shape[1])
        )
        return weight * factors.view(1, -1, *[1] * (weight.dim() - 2))
    out = weight
    for column in range(index.shape[1]):
        places = index[:, column]
        read = torch.einsum("oj...,jc->oc...", weight[:, places], aligned)
        out = out.index_copy(1, places, read)
    return out


class _Stage:
    """Replaces the output of a chain of blocks by the weighted outputs after each depth."""

    def __init__(self, network: WidthDepthNetwork, number: int, choice: DepthChoice) -> None:
        self._network = network
        self._number = number
        self._choice = choice
        self._after: list[Tensor] = []
        blocks = [network.model.get_submodule(name) for name in choice.blocks]
        self._handles = [blocks[0].register_forward_pre_hook(self._enter)]
        self._handles += [block.register_forward_hook(self._leave) for block in blocks]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        del block
        self._after = [args[0]]

    def _leave(self, block: nn.Module, args: object, output: Tensor) -> Tensor | None:
        del block, args
        self._after.append(output)
        if len(self._after) <= len(self._choice.blocks):
            return None
        features, self._after = self._after, []
        mixture = self._network.mixture
        if mixture is None:
            return None
        shares = mixture.depths[self._number].to(torch.float32)
        mixed = sum(
            share * features[keep].float()
            for share, keep in zip(shares, self._choice.candidates, strict=True)
        )
        assert isinstance(mixed, Tensor)
        return mixed.to(output.dtype)
