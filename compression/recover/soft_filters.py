"""Soft filter pruning: the worst filters are zeroed again and again, and may come back.

Reference:
    He et al. (2018), "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
    algorithm 1, https://arxiv.org/abs/1808.06866: after every epoch the filters of least L2 norm
    are set to zero, a fixed number per layer, and all keep training.
    Lin et al. (2018), "Accelerating Convolutional Networks via Global & Dynamic Filter Pruning":
    a first-order score, compared over all layers, every few steps.

Deviations:
    Filters are those of coupled layers, which go together. In between only the weights and biases
    of convolutions and linear layers are zeroed: a channel whose norm were zeroed too would never
    get a gradient again. The first-order score is the mean of `|sum g w|` over the steps since
    the last zeroing; a mask in the forward pass, with gradients for what it hides, is not kept.
    Where the score is compared over all layers, each coupling keeps one channel at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compression.coupling import Coupling, Indices
from compression.errors import CompressionError
from compression.recover.hook import Hook
from compression.recover.masks import trained_weight
from compression.selectors.selector import sum_over_producers

Criterion = Literal["l2", "taylor", "global_taylor"]


class SoftFilters(Hook):
    """Regulariser: makes channels unimportant that training can do without.

    After training the removed channels are exactly zero behind their norms, so that pruning the
    rest away changes nothing as long as the functions between keep zero (ReLU does, sigmoid does
    not); the `l1` and `l2` selectors find the same channels.

    Attributes:
        kept: By coupling, the channels that were not zeroed last, ascending; empty before.
    """

    def __init__(
        self,
        couplings: Sequence[Coupling],
        keep_channels: Mapping[str, int],
        *,
        every_steps: int,
        criterion: Criterion = "l2",
    ) -> None:
        """Name what is pruned softly.

        Args:
            couplings: Of the model; those that `keep_channels` does not name are left alone.
            keep_channels: By coupling, how many channels are not zeroed. With `global_taylor`
                only their sum is read.
            every_steps: Steps between two zeroings: an epoch's in the paper.
            criterion: `l2`: the norm of a channel's filters. `taylor`: the first-order score.
                `global_taylor`: the same, compared over all couplings.

        Raises:
            CompressionError: A coupling is unknown, or a number is out of its range.
        """
        known = {coupling.name: coupling for coupling in couplings}
        for name, keep in keep_channels.items():
            if name not in known:
                raise CompressionError(f"Soft filters: coupling {name!r} is unknown")
            if not 1 <= keep <= known[name].channels:
                raise CompressionError(
                    f"Soft filters: coupling {name!r} keeps {keep} of {known[name].channels} "
                    "channels; at least 1 and at most all are required"
                )
        if every_steps < 1:
            raise CompressionError(f"Soft filters: every_steps is {every_steps}; 1 is the least")
        self.kept: dict[str, tuple[int, ...]] = {}
        self._couplings = {name: known[name] for name in keep_channels}
        self._keep = dict(keep_channels)
        self._every = every_steps
        self._criterion = criterion
        self._total = 0
        self._sums = {name: np.zeros(c.channels) for name, c in self._couplings.items()}

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Note the length; nothing is zeroed before the first steps."""
        del model
        self._total = total_steps

    def gradients(self, model: nn.Module, step: int) -> None:
        """Add up the first-order score, where it is the criterion."""
        del step
        if self._criterion == "l2":
            return
        products = {
            name: parameter.grad * parameter.detach()
            for name, parameter in self._filters(model).items()
            if parameter.grad is not None
        }
        for name, coupling in self._couplings.items():
            self._sums[name] += np.abs(sum_over_producers(products, coupling, ("weight", "bias")))

    def after_step(self, model: nn.Module, step: int) -> None:
        """Zero the worst filters at the end of a period."""
        if (step + 1) % self._every == 0 and step + 1 < self._total:
            self._zero(model, norms=False)
            for sums in self._sums.values():
                sums.fill(0.0)

    def finish(self, model: nn.Module) -> None:
        """Zero the worst filters and their norms."""
        self._zero(model, norms=True)

    def state(self) -> Mapping[str, Tensor]:
        """Return the scores of the present period."""
        return {name: torch.from_numpy(sums) for name, sums in self._sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._sums = {name: tensor.clone().numpy() for name, tensor in state.items()}

    def _filters(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights and biases that channels are produced with, by parameter name."""
        filters = {}
        for coupling in self._couplings.values():
            for tap in coupling.taps:
                module = model.get_submodule(tap.layer)
                if tap.side == "out" and isinstance(module, _ConvNd | nn.Linear):
                    filters[f"{tap.layer}.weight"] = trained_weight(model, tap.layer)
                    if module.bias is not None:
                        filters[f"{tap.layer}.bias"] = module.bias
        return filters

    @torch.no_grad()
    def _zero(self, model: nn.Module, *, norms: bool) -> None:
        removed = self._removed(model)
        filters = self._filters(model)
        for name, coupling in self._couplings.items():
            stay = np.setdiff1d(np.arange(coupling.channels), removed[name])
            self.kept[name] = tuple(int(channel) for channel in stay)
            for tap in coupling.taps:
                if tap.side == "in":
                    continue
                rows = torch.from_numpy(tap.index[removed[name]].ravel())
                module = model.get_submodule(tap.layer)
                norm = norms and isinstance(module, _NormBase)
                for kind in ("weight", "bias"):
                    parameter = getattr(module, kind, None) if norm else None
                    parameter = filters.get(f"{tap.layer}.{kind}", parameter)
                    if parameter is not None:
                        parameter[rows] = 0.0

    def _removed(self, model: nn.Module) -> dict[str, Indices]:
        """Return the channels to zero, by coupling."""
        scores: Mapping[str, NDArray[np.float64]] = self._sums
        # Right after a zeroing there is no first-order score yet; norms tell what was zeroed.
        if self._criterion == "l2" or not any(sums.any() for sums in self._sums.values()):
            squares = {k: v.detach().square() for k, v in self._filters(model).items()}
            scores = {
                name: np.sqrt(sum_over_producers(squares, coupling))
                for name, coupling in self._couplings.items()
            }
        keep = self._keep
        if self._criterion == "global_taylor":
            keep = spread(scores, sum(self._keep.values()))
        orders = {name: np.argsort(-score, kind="stable") for name, score in scores.items()}
        return {name: order[keep[name] :] for name, order in orders.items()}


def spread(scores: Mapping[str, NDArray[np.float64]], keep: int) -> dict[str, int]:
    """Return how many channels each coupling keeps of the `keep` best of all together.

    Args:
        scores: By coupling; comparable between them.
        keep: At least the number of couplings: each keeps its best channel in any case.
    """
    kept = dict.fromkeys(scores, 1)
    rest = [
        (-score, place, name)
        for place, (name, values) in enumerate(scores.items())
        for score in np.sort(values)[::-1][1:].tolist()
    ]
    for _, _, name in sorted(rest)[: keep - len(kept)]:
        kept[name] += 1
    return kept
