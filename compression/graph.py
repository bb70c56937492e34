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
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch_pruning._helpers import _HybridIndex

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

_Pair = tuple[int, int]

_MOST_INDICES = 1 << 17
"""Most positions of one layer that a coupling may touch; VGG-16's first linear layer has 25,088."""

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
    reached, lost = _reach(graph, root)
    found: dict[tuple[str, Side], set[_Pair]] = {}
    passes: set[str] = set()
    producers: set[nn.Module] = set()
    is_output = False
    obstacle = (
        "the tracer cannot follow its channels through the model's reshapes" if lost else None
    )
    for (node, prune), pairs in reached.items():
        consumes = graph.is_in_channel_pruning_fn(prune) and not (
            graph.is_out_channel_pruning_fn(prune)
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
            found.setdefault((name, side), set()).update(pairs)
    taps = []
    for (layer, side), pairs in found.items():
        index = _index_table(channels, pairs)
        if index is None:
            obstacle = obstacle or f"its channels reach {layer!r} unevenly"
        else:
            taps.append(Tap(layer=layer, side=side, index=index))
    taps.sort(key=lambda tap: (position.get(tap.layer, len(position)), tap.side))
    if not is_output and obstacle is None and all(tap.side == "out" for tap in taps):
        obstacle = "no layer that could be thinned consumes its channels"
    # A wider producer, of which this coupling is a part, gives it no name.
    whole = {names[p] for p in producers if _width(p) == channels and not is_depthwise(p)}
    coupling = Coupling(
        name=next((tap.layer for tap in taps if tap.layer in whole), names[root]),
        channels=channels,
        taps=tuple(taps),
        passes=frozenset(passes),
        is_output=is_output,
        obstacle=obstacle,
    )
    return coupling, producers


def _reach(graph: Any, root: nn.Module) -> tuple[dict[tuple[Any, Any], set[_Pair]], bool]:
    """Follow all output channels of `root` along the dependencies to every node.

    This is Torch-Pruning's `get_pruning_group` with a limit: on some networks (Swin) its index
    maps expand the indices at every reshape, without end.

    Returns:
        By node and pruning function, pairs of a channel of the root and the node's own position
        that stands for it; and whether the limit was met.
    """
    first = (graph.module2node[root], graph.get_pruner_of_module(root).prune_out_channels)
    start = [_HybridIndex(idx=i, root_idx=i) for i in range(_width(root))]
    reached: dict[tuple[Any, Any], set[_Pair]] = {first: {(i, i) for i in range(_width(root))}}
    waiting = [(*first, start)]
    while waiting:
        node, prune, indices = waiting.pop()
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(prune):
                continue
            mapped = indices
            for mapping in dependency.index_mapping:
                mapped = mapped if mapping is None else mapping(mapped)
            known = reached.setdefault((dependency.target, dependency.handler), set())
            fresh = [i for i in mapped if (i.root_idx, i.idx) not in known]
            known.update((i.root_idx, i.idx) for i in fresh)
            if len(known) > _MOST_INDICES:
                return reached, True
            if fresh:
                waiting.append((dependency.target, dependency.handler, fresh))
    return {key: pairs for key, pairs in reached.items() if pairs}, False


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


def _index_table(channels: int, pairs: set[_Pair]) -> Indices | None:
    """Return the `channels x m` table of a layer side; None where rows differ in length."""
    rows = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    counts = np.bincount(rows[:, 0], minlength=channels)
    if len(set(counts)) != 1 or len(set(rows[:, 1])) != len(rows):
        return None
    return np.ascontiguousarray(rows[:, 1].reshape(channels, -1))
