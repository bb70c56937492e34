"""Windows: what convolutions and linear layers look at where their outputs are sampled.

A convolution's output at one position is the product of its filters with a *window* of its input,
`in_channels x k` values, `k` the kernel's positions. A linear layer's window is one token, with
`k` = 1. Reconstruction works on some ten sampled windows per image, as neighbours say the same.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compression.coupling import Coupling, Tap

Visit = Callable[[str, nn.Module, Tensor], None]
"""Called with a layer's name, the layer and its input, before the layer runs."""


def has_windows(module: nn.Module) -> bool:
    """Whether the layer mixes all its input channels: no transposed, depthwise or grouped one."""
    if isinstance(module, _ConvNd):
        return module.groups == 1 and not isinstance(module, _ConvTransposeNd)
    return isinstance(module, nn.Linear)


def consumers(model: nn.Module, couplings: Sequence[Coupling]) -> Mapping[str, tuple[Tap, ...]]:
    """Return, by coupling, the `in` sides of the layers that look at its channels in windows.

    It may be none: where grouped convolutions alone consume the channels. And it may be layers
    that are never called: an attention layer may compute with the weights of its projection.
    Selectors that look at consumers rank such a coupling by the L2 norm of its filters.
    """
    return {
        coupling.name: tuple(
            tap
            for tap in coupling.taps
            if tap.side == "in" and has_windows(model.get_submodule(tap.layer))
        )
        for coupling in couplings
    }


def layer_generator(seed: int, layer: str) -> torch.Generator:
    """Return a layer's own source of randomness: what else is sampled does not matter to it."""
    return torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(layer.encode()))


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every layer into evaluation mode and, at the end, into the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def observe(
    model: nn.Module, layers: Collection[str], batches: Iterable[Tensor], visit: Visit
) -> None:
    """Run batches through the model in evaluation mode and show what the layers take.

    Args:
        model: Left as it was.
        layers: Dotted paths of those to look at.
        batches: `B x C x H x W` inputs.
        visit: Called in forward order, as often as a layer is called.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, inputs: visit(name, module, inputs[0])

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in sorted(layers)
    ]
    try:
        with in_eval_mode(model), torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()


def draw_positions(
    module: nn.Module, x: Tensor, per_image: int, generator: torch.Generator
) -> Tensor:
    """Draw output positions of a layer: `B x l` int64, `l` at most `per_image`.

    Where a layer has no more positions than that, all are taken; else they are drawn with
    replacement.
    """
    total = math.prod(_output_size(module, x))
    if total <= per_image:
        return torch.arange(total).expand(len(x), total)
    return torch.randint(total, (len(x), per_image), generator=generator)


def windows(module: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """Return what the layer looks at for its outputs at `positions`.

    Args:
        module: One that `has_windows`.
        x: Its input.
        positions: `B x l`, flat numbers of output positions.

    Returns:
        `(B l) x in_channels x k`.
    """
    if not isinstance(module, _ConvNd):
        tokens = x.reshape(len(x), -1, x.shape[-1])
        picked = tokens.gather(1, positions.unsqueeze(2).expand(-1, -1, x.shape[-1]))
        return picked.reshape(-1, x.shape[-1], 1)
    padded = _padded(module, x)
    start = torch.zeros_like(positions)
    offsets = torch.zeros(1, dtype=torch.int64)
    step, rest = 1, positions
    # From the last dimension, whose neighbours are one apart, to the first.
    for axis in reversed(range(padded.dim() - 2)):
        size = _output_size(module, x)[axis]
        start = start + (rest % size) * module.stride[axis] * step
        rest = rest // size
        taps = torch.arange(module.kernel_size[axis]) * module.dilation[axis] * step
        offsets = (taps.unsqueeze(1) + offsets.unsqueeze(0)).flatten()
        step *= padded.shape[2 + axis]
    index = (start.unsqueeze(2) + offsets).flatten(1)
    channels = padded.shape[1]
    picked = padded.flatten(2).gather(2, index.unsqueeze(1).expand(-1, channels, -1))
    picked = picked.view(len(x), channels, positions.shape[1], len(offsets))
    return picked.transpose(1, 2).reshape(-1, channels, len(offsets))


def outputs_at(module: nn.Module, y: Tensor, positions: Tensor) -> Tensor:
    """Return the layer's outputs `y` at `positions`, `(B l) x out_channels`."""
    tokens = y.flatten(2).transpose(1, 2) if isinstance(module, _ConvNd) else y
    tokens = tokens.reshape(len(y), -1, tokens.shape[-1])
    picked = tokens.gather(1, positions.unsqueeze(2).expand(-1, -1, tokens.shape[-1]))
    return picked.reshape(-1, tokens.shape[-1])


def filters(module: nn.Module) -> Tensor:
    """Return the layer's weight as `out_channels x in_channels x k`, without gradient."""
    weight = module.get_parameter("weight").detach()
    return weight.reshape(*weight.shape[:2], -1)


def _padded(module: _ConvNd, x: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)


def _output_size(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    if not isinstance(module, _ConvNd):
        return tuple(x.shape[1:-1])
    padding = module._reversed_padding_repeated_twice
    sizes = []
    for axis, size in enumerate(x.shape[2:]):
        # Pairs of padding are listed from the last dimension to the first.
        before, after = padding[-2 * axis - 2], padding[-2 * axis - 1]
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        sizes.append((size + before + after - reach) // module.stride[axis] + 1)
    return tuple(sizes)
