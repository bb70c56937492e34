"""Masks: which weights of a layer stay, how they are chosen, and how training keeps to them.

Reference:
    Han et al. (2015), "Learning both Weights and Connections for Efficient Neural Networks",
    https://arxiv.org/abs/1506.02626: zeros by magnitude, then training under the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression.errors import CompressionError
from compression.recover.hook import Hook

Masks = Mapping[str, Tensor]
"""By dotted path of a layer: bool of its weight's shape, True where the weight stays."""


def planned_zeros(weights: int, sparsity: float) -> int:
    """Return the whole number of zeros among `weights`; at least one weight stays."""
    return min(round(weights * sparsity), weights - 1)


def without_smallest(scores: Tensor, zeros: int) -> Tensor:
    """Return a mask of the scores' shape that leaves out exactly the `zeros` smallest.

    Of equal scores the first, in row-major order, is left out first. Linear in their number.
    """
    flat = scores.reshape(-1)
    if zeros <= 0:
        return torch.ones_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)
    limit = flat.kthvalue(zeros).values
    out = flat < limit
    tied = (flat == limit).nonzero().view(-1)
    out[tied[: zeros - int(out.sum())]] = True
    return ~out.view(scores.shape)


def global_masks(scores: Mapping[str, Tensor], zeros: int) -> dict[str, Tensor]:
    """Return masks that leave out the `zeros` smallest scores of all layers together."""
    together = without_smallest(torch.cat([s.reshape(-1) for s in scores.values()]), zeros)
    parts = torch.split(together, [s.numel() for s in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def n_of_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Return a mask that keeps the n greatest of every m neighbours along the reduction axis.

    Args:
        scores: `Co x ...`; everything behind the first axis, flattened, is the reduction axis.
        n: Stay of every group; of equal scores the first stay.
        m: Weights of a group; what is left of a row behind its last whole group all stays.
    """
    rows = scores.reshape(scores.shape[0], -1)
    whole = rows.shape[1] // m * m
    groups = rows[:, :whole].reshape(rows.shape[0], -1, m)
    order = groups.argsort(dim=2, descending=True, stable=True)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order[:, :, :n], True)
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[:, :whole] = kept.reshape(rows.shape[0], whole)
    return mask.view(scores.shape)


def trained_weight(model: nn.Module, layer: str) -> Tensor:
    """Return the weight of a layer that an optimizer changes: under a parametrization, its source.

    Raises:
        CompressionError: There is no such layer, or it has no weight.
    """
    try:
        module = model.get_submodule(layer)
    except AttributeError as error:
        raise CompressionError(f"Layer {layer!r} is not in the model") from error
    if parametrize.is_parametrized(module, "weight"):
        weight = getattr(module.get_submodule("parametrizations.weight"), "original", None)
    else:
        weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise CompressionError(f"Layer {layer!r} has no weight that can be masked")
    return weight


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the weights outside the masks to zero, in place.

    Assigned, not multiplied: what is outside becomes +0 even where it was infinite.
    """
    with torch.no_grad():
        for layer, mask in masks.items():
            trained_weight(model, layer).masked_fill_(~mask, 0.0)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of layers under the names of a hook's state."""
    return {f"{prefix}.{layer}": tensor for layer, tensor in tensors.items()}


def unprefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `prefixed` put into a hook's state, newly allocated."""
    start = f"{prefix}."
    return {k.removeprefix(start): t.clone() for k, t in state.items() if k.startswith(start)}


def zeros_of(model: nn.Module, layers: Sequence[str]) -> int:
    """Return how many weights of the layers are zero."""
    return sum(int((trained_weight(model, layer) == 0).sum()) for layer in layers)


class KeepMasks(Hook):
    """Invariant: weights outside the masks are zero after every step, and get no gradients.

    Gradients are masked too, so the optimizer's momentum never learns to push against the mask
    and the norm that they are clipped by is that of the weights that exist.
    """

    def __init__(self, masks: Masks) -> None:
        self.masks = masks

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Check that the masks fit, and apply them.

        Raises:
            CompressionError: A layer is missing or its weight has another shape than its mask.
        """
        for layer, mask in self.masks.items():
            shape = trained_weight(model, layer).shape
            if shape != mask.shape:
                raise CompressionError(
                    f"Layer {layer!r} has a weight of {tuple(shape)}; "
                    f"its mask is of {tuple(mask.shape)}"
                )
        apply_masks(model, self.masks)

    def gradients(self, model: nn.Module, step: int) -> None:
        """Take the gradients of what is outside away."""
        for layer, mask in self.masks.items():
            gradient = trained_weight(model, layer).grad
            if gradient is not None:
                gradient.masked_fill_(~mask, 0.0)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Apply the masks."""
        apply_masks(model, self.masks)

    def finish(self, model: nn.Module) -> None:
        """Apply the masks."""
        apply_masks(model, self.masks)
