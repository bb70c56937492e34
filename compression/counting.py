"""Counting by running: MACs of convolutions and linear layers, parameters, call order."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerCalls:
    """What one forward pass of one input did with a layer.

    Attributes:
        name: Dotted path.
        positions: For convolutions and linear layers: how often every weight was multiplied
            (Ho * Wo for a convolution, tokens for a linear layer), summed over its calls; 0 for
            other layers.
        macs: `positions` times its weights.
    """

    name: str
    positions: int
    macs: int


def _positions(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    if isinstance(module, _ConvTransposeNd):
        return inputs[0, 0].numel()
    if isinstance(module, _ConvNd):
        return output[0, 0].numel()
    return output.numel() // output.shape[-1]


def count_calls(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[LayerCalls, ...]:
    """Run one input of zeros through `model` and record its layers.

    MACs count multiply-adds of convolution and linear layers; additions of biases,
    normalizations and activations are not counted, nor products of two activations.

    Args:
        model: In eval mode; it is left as it was.
        input_shape: C, H, W of one input.

    Returns:
        The called layers that have no children, in the order of their first call.
    """
    names = {module: name for name, module in model.named_modules()}
    positions: dict[str, int] = {}
    macs: dict[str, int] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = names[module]
        count = weights = 0
        if isinstance(module, _ConvNd | nn.Linear):
            count = _positions(module, inputs[0], output)
            weights = module.weight.numel()
        positions[name] = positions.get(name, 0) + count
        macs[name] = macs.get(name, 0) + count * weights

    hooks = [
        module.register_forward_hook(record)
        for module in names
        if not any(True for _ in module.children()) or isinstance(module, _ConvNd | nn.Linear)
    ]
    try:
        with torch.no_grad():
            model(zeros_like_input(model, input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(LayerCalls(name=n, positions=positions[n], macs=macs[n]) for n in positions)


def count_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of one input, counted by running it."""
    return sum(call.macs for call in count_calls(model, input_shape))


def matrix_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of every convolution and matrix product of one input.

    Counted by PyTorch's own dispatcher: other than `count_macs` it sees products of two
    activations, as in attention, and functional calls.
    """
    # With gradients on, attention layers take the path that the dispatcher can see.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(zeros_like_input(model, input_shape))
    return int(counter.get_total_flops()) // 2


def count_params(model: nn.Module) -> int:
    """Return the number of parameters; a shared tensor counts once, buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def zeros_like_input(model: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """Return `1 x C x H x W` zeros of the dtype of the model's parameters."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.zeros(1, *input_shape, dtype=dtype)
