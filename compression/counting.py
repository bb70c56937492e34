"""Counting by running: MACs of convolutions and linear layers, parameters, call order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
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
        calls: How often it ran; 0 where only its weights were used, as in attention layers.
        grid_in: H, W of the input of a two-dimensional convolution at its last call; empty for
            other layers.
        grid_out: H, W of its output.
    """

    name: str
    positions: int
    macs: int
    calls: int = 1
    grid_in: tuple[int, ...] = ()
    grid_out: tuple[int, ...] = ()


# Attention layers read the weights of linear layers without calling them.
_BORROWED: dict[type[nn.Module], str] = {
    nn.Linear: "weight",
    nn.MultiheadAttention: "in_proj_weight",
}
_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)


def _positions(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    if isinstance(module, _ConvTransposeNd):
        return inputs.numel() // module.in_channels
    if isinstance(module, _ConvNd):
        # Not of the first row only: a layer may fold other axes into the batch.
        return output.numel() // module.out_channels
    return output.numel() // output.shape[-1]


class _BorrowedWeights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports matrix products with the weights of layers that are not called as layers."""

    def __init__(
        self, model: nn.Module, report: Callable[[tuple[str, ...], int, int], None]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._report = report
        self._owners: dict[int, tuple[tuple[str, ...], int]] = {}
        for name, module in model.named_modules():
            for kind, parameter in _BORROWED.items():
                weight = module._parameters.get(parameter) if isinstance(module, kind) else None
                if weight is not None:
                    before, _ = self._owners.get(weight.data_ptr(), ((), 0))
                    self._owners[weight.data_ptr()] = ((*before, name), weight.numel())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in _PRODUCTS:
            weight = args[-1]
            layers, count = self._owners.get(weight.data_ptr(), ((), 0))
            if count and count == weight.shape[-1] * weight.shape[-2]:
                self._report(layers, out.numel() // out.shape[-1], count)
        return out


def count_calls(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[LayerCalls, ...]:
    """Run one input of zeros through `model` and record its layers.

    MACs count multiply-adds of convolution and linear layers; additions of biases,
    normalizations and activations are not counted, nor products of two activations.

    Args:
        model: In eval mode; it is left as it was.
        input_shape: C, H, W of one input.

    Returns:
        The called layers that have no children, and those whose weights were used without a call
        (in attention layers), in the order of their first use.
    """
    names = {module: name for name, module in model.named_modules()}
    positions: dict[str, int] = {}
    macs: dict[str, int] = {}
    calls: dict[str, int] = {}
    grids: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    running: list[str] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        running.append(names[module])

    def borrowed(sharers: tuple[str, ...], count: int, weights: int) -> None:
        # A layer that is called as one is counted by its hooks.
        layer = sharers[0]
        if not set(sharers) & set(running):
            positions[layer] = positions.get(layer, 0) + count
            macs[layer] = macs.get(layer, 0) + count * weights

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = running.pop()
        count = weights = 0
        if isinstance(module, _ConvNd | nn.Linear):
            count = _positions(module, inputs[0], output)
            weights = module.weight.numel()
        if isinstance(module, nn.Conv2d):
            grids[name] = (tuple(inputs[0].shape[2:]), tuple(output.shape[2:]))
        calls[name] = calls.get(name, 0) + 1
        positions[name] = positions.get(name, 0) + count
        macs[name] = macs.get(name, 0) + count * weights

    leaves = [
        module
        for module in names
        if not any(True for _ in module.children()) or isinstance(module, _ConvNd | nn.Linear)
    ]
    hooks = [leaf.register_forward_pre_hook(enter) for leaf in leaves]
    hooks += [leaf.register_forward_hook(record) for leaf in leaves]
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fast path of attention layers is one operator that no product can be seen in.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _BorrowedWeights(model, borrowed):
            model(zeros_like_input(model, input_shape))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    rows = []
    for name in positions:
        grid_in, grid_out = grids.get(name, ((), ()))
        rows.append(
            LayerCalls(
                name=name,
                positions=positions[name],
                macs=macs[name],
                calls=calls.get(name, 0),
                grid_in=grid_in,
                grid_out=grid_out,
            )
        )
    return tuple(rows)


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
