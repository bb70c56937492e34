"""Which channels must go together: Torch-Pruning's dependency graph, read into index tables.

The only file that knows Torch-Pruning. It is used to *trace*; no module is ever pruned by it,
and nothing it says is believed before the survey's probe has shown it to be true: its index
maps are silent where they are wrong (for example, channel padding passes indices unchanged).

Reference:
    Fang et al. (2023), "DepGraph: Towards Any Structural Pruning";
    https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compression.counting import count_calls
from compression.coupling import Coupling, Indices, Side, Tap
from compression.errors import CompressionError
from compression.surgery import is_depthwise

_OPTYPE = torch_pruning.ops.OPTYPE

# What Torch-Pruning was seen to raise, or may, where its shape inference loses its way.
_TRACER_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

CHANNEL_PADDING = "channel padding"
"""In `Coupling.passes`: some channels of zeros are put around these ones."""


class Untraceable(CompressionError):
    """The tracer cannot follow the model's forward pass; its channels must stay as they are."""


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Coupling, ...]:
    """Return the coupling groups of `model`, by the forward order of their first producers.

    Args:
        model: Any module in eval mode; it is left as it was.
        input_shape: C, H, W of one input.

    Raises:
        Untraceable: The tracer cannot follow the forward pass.
    """
    traced = copy.deepcopy(model).eval().requires_grad_(True)
    order = [call.name for call in count_calls(traced, input_shape)]
    graph = torch_pruning.DependencyGraph()
    example = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.enable_grad():
            graph.build_dependency(
                traced, example, forward_fn=lambda module, x: module(x), verbose=False
            )
    except _TRACER_FAILURES as error:
        raise Untraceable(f"The channels of this model cannot be traced: {error}") from error
    names = {module: name for name, module in traced.named_modules()}
    position = {name: index for index, name in enumerate(order)}
    # Narrow producers first: where a sum joins a wide tensor with the concatenation of narrow
    # ones, every narrow producer is a coupling of its own and the wide one follows.
    roots = sorted(
        (m for m in graph.module2node if isinstance(m, nn.Linear | _ConvNd) and m in names),
        key=lambda m: (_width(m), position.get(names[m], len(order))),
    )
    shared = _shared_tensors(traced)
    covered: set[nn.Module] = set()
    couplings = []
    for root in roots:
        if root in covered or is_depthwise(root):
            continue
        coupling, producers = _coupling(graph, root, names, position, shared)
        covered.update(producers)
        couplings.append(coupling)
    return tuple(sorted(couplings, key=lambda c: position.get(c.name, len(order))))


def _width(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _coupling(
    graph: Any,
    root: nn.Module,
    names: Mapping[nn.Module, str],
    position: Mapping[str, int],
    shared: Mapping[str, str],
) -> tuple[Coupling, set[nn.Module]]:
    """Return the group of all output channels of `root`, and its producers."""
    channels = _width(root)
    prune_out = graph.get_pruner_of_module(root).prune_out_channels
    group = graph.get_pruning_group(root, prune_out, list(range(channels)))
    found: dict[tuple[str, Side], list[tuple[Sequence[int], Sequence[int]]]] = {}
    passes: set[str] = set()
    producers: set[nn.Module] = set()
    is_output = False
    obstacle: str | None = None
    for item in group:
        node = item.dep.target
        consumes = graph.is_in_channel_pruning_fn(item.dep.handler) and not (
            graph.is_out_channel_pruning_fn(item.dep.handler)
        )
        is_output = is_output or (not node.outputs and not consumes)
        if node.type == _OPTYPE.PARAMETER:
            name = graph._param_to_name[node.module]
            obstacle = obstacle or f"its channels meet the bare parameter {name!r}"
        elif node.module not in names:
            passes.add(_function_name(node))
        else:
            name = names[node.module]
            obstacle = obstacle or shared.get(name) or _unsupported(node.module, name)
            if not consumes and isinstance(node.module, nn.Linear | _ConvNd):
                producers.add(node.module)
            side: Side = "in" if consumes and not is_depthwise(node.module) else "out"
            found.setdefault((name, side), []).append((item.idxs, item.root_idxs))
    taps = []
    for (layer, side), maps in found.items():
        index = _index_table(channels, maps)
        if index is None:
            obstacle = obstacle or f"its channels reach {layer!r} unevenly"
        else:
            taps.append(Tap(layer=layer, side=side, index=index))
    taps.sort(key=lambda tap: (position.get(tap.layer, len(position)), tap.side))
    first = min(
        (names[producer] for producer in producers if not is_depthwise(producer)),
        key=lambda name: position.get(name, len(position)),
    )
    if not is_output and obstacle is None and all(tap.side == "out" for tap in taps):
        obstacle = "no layer that could be thinned consumes its channels"
    coupling = Coupling(
        name=first,
        channels=channels,
        taps=tuple(taps),
        passes=frozenset(passes),
        is_output=is_output,
        obstacle=obstacle,
    )
    return coupling, producers


def _shared_tensors(model: nn.Module) -> dict[str, str]:
    """Return, for layers that own a tensor together with another layer, what to say of it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {
        name: f"{' and '.join(map(repr, names))} share one weight tensor"
        for names in owners.values()
        if len(names) > 1
        for name in names
    }


def _function_name(node: Any) -> str:
    pads = getattr(node.grad_fn, "_saved_pad", None)
    # From the last dimension backwards, two each: from the third pair on of `B C H W`, channels.
    if pads is not None and any(pads[4:]):
        return CHANNEL_PADDING
    return str(node.type.name).lower()


def _unsupported(module: nn.Module, name: str) -> str | None:
    """Return why the layer cannot be thinned by slicing its tensors, or None."""
    if isinstance(module, nn.Linear | _ConvNd):
        if "weight" not in module._parameters:
            return f"the weights of {name!r} are re-parametrised"
        if isinstance(module, _ConvTransposeNd):
            return f"{name!r} is a transposed convolution"
        if isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module):
            return f"{name!r} is a convolution in {module.groups} groups"
        return None
    if isinstance(module, _NormBase | nn.PReLU):
        return None
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return f"{type(module).__name__} {name!r} mixes its channels into one statistic"
    return f"{type(module).__name__} {name!r} cannot be thinned"


def _index_table(
    channels: int, maps: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Indices | None:
    """Return the `channels x m` table of a layer side; None where rows differ in length."""
    pairs = {(root, own) for owns, roots in maps for own, root in zip(owns, roots, strict=True)}
    rows = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    counts = np.bincount(rows[:, 0], minlength=channels)
    if len(set(counts)) != 1 or len(set(rows[:, 1])) != len(rows):
        return None
    return np.ascontiguousarray(rows[:, 1].reshape(channels, -1))
