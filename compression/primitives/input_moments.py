"""Second moments of what layers see: E[x x^T] of their input patches on calibration inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.primitives.split_layers import Splittable, weight_of

MAX_PATCHES = 8192
"""Patches per layer, at least four per dimension: more change factors by less than noise does."""


def input_moments(
    model: nn.Module,
    names: Iterable[str],
    batches: Sequence[Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return `d x d` float64 second moments by layer, d the length of a row of its weight.

    A patch is what one output position of a convolution multiplies (padding included), or one
    input vector of a linear layer. Positions are sampled.

    Args:
        model: Left as it was; run in `eval` mode.
        names: Convolutions without groups, or linear layers.
        batches: `B x C x H x W` float32.
        generator: Draws the positions.
    """
    frozen = copy.deepcopy(model).eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def observer(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def observe(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            wanted = max(MAX_PATCHES, 4 * weight_of(layer)[0].numel())
            found = patches(layer, inputs[0], -(-wanted // len(batches)), generator)
            sums[name] = sums.get(name, 0) + (found.t() @ found).double()
            counts[name] = counts.get(name, 0) + len(found)

        return observe

    for name in names:
        frozen.get_submodule(name).register_forward_pre_hook(observer(name))
    with torch.no_grad():
        for batch in batches:
            frozen(batch)
    return {name: total / counts[name] for name, total in sums.items()}


def patches(layer: Splittable, inputs: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return up to `most` input patches as rows, ordered like a row of the layer's weight."""
    if isinstance(layer, nn.Linear):
        rows = inputs.reshape(-1, inputs.shape[-1])
        return rows[_sample(len(rows), most, generator)]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    # A view of every window: B x C x Ho x Wo x kh x kw; only the sampled ones are copied.
    windows = padded.unfold(2, (kh - 1) * dh + 1, sh).unfold(3, (kw - 1) * dw + 1, sw)
    windows = windows[..., ::dh, ::dw]
    count, _, height, width = windows.shape[:4]
    drawn = _sample(count * height * width, most, generator)
    image, place = drawn // (height * width), drawn % (height * width)
    return windows[image, :, place // width, place % width].flatten(1)


def _sample(count: int, most: int, generator: torch.Generator) -> Tensor:
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most]
