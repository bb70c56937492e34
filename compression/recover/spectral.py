"""The spectral relaxation of k-means as a penalty: blocks of weights become easy to cluster.

Reference:
    Wu et al. (2018), "Deep k-Means: Re-Training and Parameter Sharing with Harder Cluster
    Assignments for Compressing Deep Convolutions", https://arxiv.org/abs/1806.09228, equation 3:
    `lambda / 2 (Tr(W^T W) - Tr(F^T W^T W F))` with `F^T F = I`. W is `d x N`, a column per block;
    the best F are the K leading right-singular vectors, so that the penalty is half the sum of
    the remaining squared singular values. F is refreshed every few steps.

A matrix of rank K or less has no penalty: it only does something where K is smaller than both the
length of a block and the number of blocks. That asks for long blocks and few entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.primitives.weight_layers import weight_layer
from compression.recover.hook import Hook
from compression.recover.masks import prefixed, unprefixed

REFRESH_STEPS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """How a layer is to be shared.

    Attributes:
        block: Weights per block.
        entries: Size of the codebook.
    """

    block: int
    entries: int


class SpectralPenalty(Hook):
    """Pulls each layer's blocks towards a space of as many dimensions as there are entries.

    Args:
        layers: By the layer's dotted path.
        strength: lambda, > 0.
        refresh_steps: Steps between two computations of F.

    Raises:
        CompressionError: The strength is not positive or the steps are fewer than one.
    """

    def __init__(
        self,
        layers: Mapping[str, Clusters],
        strength: float = 1e-3,
        refresh_steps: int = REFRESH_STEPS,
    ) -> None:
        if not strength > 0 or refresh_steps < 1:
            raise CompressionError(
                f"strength is {strength} and refresh_steps {refresh_steps}; they must be greater "
                "than 0 and at least 1"
            )
        self._layers = layers
        self._strength = strength
        self._refresh_steps = refresh_steps
        self._leading: dict[str, Tensor] = {}

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Check that the penalty can do something.

        Raises:
            CompressionError: It would always be zero, or blocks do not fill the weight.
        """
        for name, clusters in self._layers.items():
            weights = weight_layer(model, name).weight.numel()
            blocks, rest = divmod(weights, clusters.block)
            limit = min(clusters.block, blocks)
            if rest or clusters.entries >= limit:
                raise CompressionError(
                    f"Layer {name!r}: {clusters.entries} entries for {weights} weights in blocks "
                    f"of {clusters.block}; fewer than {limit} entries and whole blocks are required"
                )

    def penalty(self, model: nn.Module, step: int) -> Tensor:
        """Return the weighted sum over layers."""
        terms = []
        for name, clusters in self._layers.items():
            blocks = weight_layer(model, name).weight.reshape(-1, clusters.block)
            if step % self._refresh_steps == 0 or name not in self._leading:
                self._leading[name] = leading(blocks, clusters.entries)
            terms.append(residual(blocks, self._leading[name]))
        return self._strength / 2 * torch.stack(terms).sum()

    def state(self) -> Mapping[str, Tensor]:
        """Return F of every layer."""
        return prefixed("leading", self._leading)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with those."""
        self._leading = unprefixed("leading", state)


def leading(blocks: Tensor, entries: int) -> Tensor:
    """Return F: the leading right-singular vectors of W, the transpose of `blocks`.

    Args:
        blocks: `N x d`.
        entries: K < min(N, d).

    Returns:
        `N x K` with orthonormal columns.
    """
    left: Tensor = torch.linalg.svd(blocks.detach(), full_matrices=False)[0]
    return left[:, :entries]


def residual(blocks: Tensor, vectors: Tensor) -> Tensor:
    """Return `Tr(W^T W) - Tr(F^T W^T W F)` with W the transpose of `blocks`; differentiable."""
    return blocks.square().sum() - (blocks.T @ vectors).square().sum()
