"""Pools that the convolution before them could do itself, by a longer stride.

Reference:
    Li et al. (2018), "DeepRebirth: Accelerating Deep Neural Network Execution on Mobile Devices",
    section 3 (streamline slimming), https://arxiv.org/abs/1708.04728.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from compression.counting import zeros_like_input

_MONOTONE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Sigmoid, nn.Tanh)
"""Activations that commute with taking a maximum."""
_PASSING = (nn.BatchNorm2d, nn.Identity, nn.Dropout, nn.Dropout2d, *_MONOTONE)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MergeablePool:
    """A convolution, what lies between, and the pool behind it.

    Attributes:
        conv: Dotted path of the convolution.
        between: Of normalisations and activations between the two, in forward order.
        pool: Of the pool.
        stride: Of the merged convolution.
        padding: Of the merged convolution: its windows lie as near as can be to the centres of
            the pool's.
        grid: H, W of its output.
    """

    conv: str
    between: tuple[str, ...]
    pool: str
    stride: tuple[int, int]
    padding: tuple[int, int]
    grid: tuple[int, int]


def find_pools(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[MergeablePool, ...]:
    """Return the pools that could be merged into the convolution before them, in forward order.

    A chain is seen where all its links are modules that run once; what else reads a tensor
    between them disqualifies it only if it is a module, too.

    Args:
        model: In eval mode; left as it was.
        input_shape: C, H, W of one input.
    """
    model = copy.deepcopy(model).eval()
    makers: dict[int, str] = {}
    in_place: dict[int, list[str]] = {}
    readers: dict[int, list[str]] = {}
    source: dict[str, int] = {}
    grids: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    calls: dict[str, int] = {}
    # Tensors are told apart by their identity, which only living ones keep.
    alive: list[Tensor] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            x = inputs[0] if inputs else None
            if not isinstance(x, Tensor) or not isinstance(output, Tensor):
                return
            alive.extend((x, output))
            source[name] = id(x)
            readers.setdefault(id(x), []).append(name)
            if output is x:
                in_place.setdefault(id(x), []).append(name)
            else:
                makers[id(output)] = name
            grids[name] = (tuple(x.shape[2:]), tuple(output.shape[2:]))

        return hook

    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(look(name))
    with torch.no_grad():
        model(zeros_like_input(model, input_shape))
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, _POOLS) or calls.get(name) != 1 or name not in source:
            continue
        chain = _chain(model, name, makers, readers, source, in_place, calls)
        if chain is None:
            continue
        conv, *between = chain
        merged = _merged(model, conv, tuple(between), name, grids)
        if merged is not None:
            found.append(merged)
    return tuple(found)


def _chain(
    model: nn.Module,
    pool: str,
    makers: dict[int, str],
    readers: dict[int, list[str]],
    source: dict[str, int],
    in_place: dict[int, list[str]],
    calls: dict[str, int],
) -> list[str] | None:
    """Return convolution and what lies between it and the pool; None if there is no such chain."""
    between: list[str] = []
    tensor, reader = source[pool], pool
    while True:
        silent = in_place.get(tensor, [])
        if [name for name in readers[tensor] if name not in silent] != [reader]:
            return None
        maker = makers.get(tensor)
        if maker is None or calls.get(maker) != 1:
            return None
        for name in reversed(silent):
            if name != maker:
                between.insert(0, name)
        module = model.get_submodule(maker)
        if type(module) is nn.Conv2d:
            if any(not isinstance(model.get_submodule(name), _PASSING) for name in between):
                return None
            return [maker, *between]
        if not isinstance(module, _PASSING):
            return None
        between.insert(0, maker)
        tensor, reader = source[maker], maker


def _merged(
    model: nn.Module,
    conv: str,
    between: tuple[str, ...],
    pool: str,
    grids: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> MergeablePool | None:
    layer, pooling = model.get_submodule(conv), model.get_submodule(pool)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(pooling, nn.MaxPool2d | nn.AvgPool2d)
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and layer.dilation == (1, 1)
    if (
        not plain
        or isinstance(layer.padding, str)
        or getattr(pooling, "dilation", 1) not in (1, (1, 1))
    ):
        return None
    sizes, inner = _pair(pooling.kernel_size), _pair(pooling.padding)
    steps = _pair(pooling.stride if pooling.stride is not None else pooling.kernel_size)
    if steps == (1, 1):
        return None
    before, after = grids[conv][0], grids[pool][1]
    stride, padding = [], []
    for axis in range(2):
        step = layer.stride[axis] * steps[axis]
        window = layer.kernel_size[axis]
        wanted = layer.padding[axis] + layer.stride[axis] * (inner[axis] - (sizes[axis] - 1) / 2)
        fitting = [
            p
            for p in range(window)
            if before[axis] + 2 * p >= window
            and (before[axis] + 2 * p - window) // step + 1 == after[axis]
        ]
        if not fitting:
            return None
        stride.append(step)
        padding.append(min(fitting, key=lambda p: (abs(p - wanted), -p)))
    return MergeablePool(
        conv=conv,
        between=between,
        pool=pool,
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        grid=(after[0], after[1]),
    )


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
