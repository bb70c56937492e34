"""Which blocks of a model could be the identity: residual blocks and transformer layers.

A block qualifies by what it computes, not by its class: with all its parameters at zero it hands
its input through. That holds for what is added to a shortcut (also behind a last ReLU, whose
inputs are not negative there) and for nothing else.

Reference:
    Similarity of a block's output to its input as a score for dropping it: Men et al. (2024),
    "ShortGPT", https://arxiv.org/abs/2403.03853, equation 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.equivalence import FORWARD_ERRORS

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TOLERANCE = 1e-6


def find_blocks(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the dotted paths of the outermost blocks, in forward order.

    Args:
        model: In eval mode; left as it was.
        input_shape: C, H, W of one input.
    """
    calls = _calls(model, [torch.randn(2, *input_shape, generator=_generator())])
    found: list[str] = []
    for name, inputs in calls.items():
        if any(name.startswith(f"{other}.") for other in found):
            continue
        block = model.get_submodule(name)
        if len(inputs) == 1 and _is_residual(block, inputs[0][0], inputs[0][1]):
            found.append(name)
    return tuple(found)


def block_similarity(
    model: nn.Module, blocks: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, float]:
    """Return the mean cosine between input and output of each block, in [-1, 1].

    A block near 1 changes little. Averaged over inputs, each flattened.

    Args:
        model: In eval mode; left as it was.
        blocks: From `find_blocks`.
        batches: `B x C x H x W` inputs; at least one.
    """
    sums: dict[str, float] = dict.fromkeys(blocks, 0.0)
    count = 0
    for batch in batches:
        calls = _calls(model, [batch])
        count += len(batch)
        for name in blocks:
            before, after = calls[name][0]
            cosine = nn.functional.cosine_similarity(before.flatten(1), after.flatten(1))
            sums[name] += float(cosine.sum())
    return {name: total / count for name, total in sums.items()}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _calls(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return input and output of every call of every candidate, outer modules first."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    entered: dict[str, Tensor] = {}
    unfit: set[str] = set()
    handles = []
    for name, module in model.named_modules():
        is_leaf = next(module.children(), None) is None
        if not name or is_leaf or isinstance(module, _CONTAINERS):
            continue
        if sum(1 for parameter in module.parameters() if parameter.dim() > 1) == 0:
            continue
        seen[name] = []

        def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            # Cloned before the call: the block may work in place.
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                entered[name] = args[0].detach().clone()
            else:
                unfit.add(name)

        def after(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            x = entered.pop(name, None)
            if x is not None and isinstance(output, Tensor) and x.shape == output.shape:
                seen[name].append((x, output.detach().clone()))
            else:
                unfit.add(name)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return {name: calls for name, calls in seen.items() if calls and name not in unfit}


def _is_residual(block: nn.Module, x: Tensor, y: Tensor) -> bool:
    zeros: Mapping[str, Tensor] = {
        name: torch.zeros_like(parameter) for name, parameter in block.named_parameters()
    }
    try:
        with torch.no_grad():
            through: Tensor = functional_call(copy.deepcopy(block).eval(), dict(zeros), (x,))
    except FORWARD_ERRORS:
        return False
    scale = float(x.abs().max()) or 1.0
    return bool((through - x).abs().max() <= _TOLERANCE * scale) and not torch.equal(x, y)
