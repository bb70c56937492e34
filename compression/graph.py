"""Which channels must go together: the labels of a forward pass, read into index tables.

`compression.flow` follows every channel through the model. Channels that can only go together
are one class; classes that touch the same sides of the same layers, equally often, make one
coupling. Nothing of it is believed before the survey's probe has shown it to be true: code that
slices or reshapes by a number that is written in it cannot be told from code that does not.

Reference:
    Fang et al. (2023), "DepGraph: Towards Any Structural Pruning",
    https://arxiv.org/abs/2301.12900, for the problem and the notion of a group.

Deviations:
    The paper matches patterns of layers on the graph of autograd functions; here indices are
    carried through the operators themselves, so that permutations of channels stay exact.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from compression.counting import count_calls
from compression.coupling import Coupling, Indices, Side, Tap
from compression.errors import CompressionError
from compression.flow import ChannelFlow
from compression.labels import compact
from compression.surgery import is_depthwise

_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

_Entry = tuple[str, Side]


class Untraceable(CompressionError):
    """The tracer cannot follow the model's forward pass; its channels must stay as they are."""


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Coupling, ...]:
    """Return the coupling groups of `model`, by the forward order of their first producers.

    Layers that run in training only (auxiliary classifiers) are followed in a second pass, so
    that they are cut with the rest.

    Args:
        model: Any module; it is left as it was.
        input_shape: C, H, W of one input.

    Raises:
        Untraceable: The tracer cannot follow the forward pass.
    """
    order = [call.name for call in count_calls(model, input_shape)]
    flow = ChannelFlow(model)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    example = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        flow.run(example)
        _follow_training(model, flow, example, order)
    except _FAILURES as error:
        raise Untraceable(f"The channels of this model cannot be traced: {error}") from error
    finally:
        for module, training in modes:
            module.training = training
    position = {name: index for index, name in enumerate(order)}
    shared = _shared_tensors(model)
    couplings = [
        *_couplings(flow, model, position),
        *(attention.coupling for attention in flow.attentions.values()),
    ]
    couplings = [_with_obstacle(coupling, shared) for coupling in couplings]
    return tuple(sorted(couplings, key=lambda c: position.get(c.name, len(order))))


def _follow_training(
    model: nn.Module, flow: ChannelFlow, example: torch.Tensor, called: Sequence[str]
) -> None:
    """Follow the layers that evaluation does not call, if there are any."""
    idle = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    if not idle - set(called):
        return
    for module in model.modules():
        # Layers stay in evaluation mode: no statistics change, nothing is dropped at random.
        module.training = any(True for _ in module.children())
    # A model that cannot be run like this is none whose training would need it.
    with contextlib.suppress(*_FAILURES):
        flow.run(example)


def _couplings(flow: ChannelFlow, model: nn.Module, position: Mapping[str, int]) -> list[Coupling]:
    sides = _sides(flow)
    classes = flow.labels.classes()
    entries = sorted(sides, key=lambda e: (position.get(e[0], len(position)), e[1]))
    found = {entry: (np.flatnonzero(sides[entry]), sides[entry]) for entry in entries}
    found = {entry: (where, classes[labels[where]]) for entry, (where, labels) in found.items()}
    outputs = set(classes[_numbers(flow.outputs)].tolist())
    reasons: dict[int, str] = {}
    merged: list[set[int]] = []
    for reason, labels, merge in flow.labels.flags():
        flagged = set(classes[labels].tolist())
        for one in flagged:
            reasons.setdefault(one, reason)
        if merge:
            merged.append(flagged)
    taken: set[str] = set()
    couplings = []
    groups = _groups(found, merged)
    for members, touched in zip(groups, _touched(found, groups, len(classes)), strict=True):
        coupling = _coupling(members, touched, model, taken)
        if coupling is None:
            continue
        taken.add(coupling.name)
        is_output = any(member in outputs for member in members)
        obstacle = next((reasons[m] for m in members if m in reasons), None)
        if not is_output and obstacle is None and all(t.side == "out" for t in coupling.taps):
            obstacle = "no layer that could be thinned consumes its channels"
        couplings.append(dataclasses.replace(coupling, is_output=is_output, obstacle=obstacle))
    return couplings


def _sides(flow: ChannelFlow) -> dict[_Entry, NDArray[np.int64]]:
    """Return one label per position of every layer side; uses of one layer are united."""
    sides = {}
    for entry, uses in flow.taps.items():
        labels = uses[0]
        for other in uses[1:]:
            flow.labels.unite(labels, other)
            labels = torch.where(labels == 0, other, labels)
        sides[entry] = labels.numpy().astype(np.int64)
    return sides


def _numbers(labels: Iterable[torch.Tensor]) -> NDArray[np.int64]:
    rows = [np.unique(compact(tensor)[0].numpy()).astype(np.int64) for tensor in labels]
    found: NDArray[np.int64] = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    return found[np.flatnonzero(found)]


def _groups(
    found: Mapping[_Entry, tuple[Indices, Indices]], merged: Sequence[set[int]]
) -> list[list[int]]:
    """Return classes that touch the same layer sides equally often, in forward order.

    Args:
        found: By layer side, positions and their classes.
        merged: Classes that are one thing, whatever they touch.
    """
    signatures: dict[int, list[tuple[int, int]]] = {}
    for number, (_, classes) in enumerate(found.values()):
        for one, count in zip(*np.unique(classes, return_counts=True), strict=True):
            signatures.setdefault(int(one), []).append((number, int(count)))
    groups: dict[object, list[int]] = {}
    for one, signature in signatures.items():
        groups.setdefault(tuple(signature), []).append(one)
    for event in merged:
        keys = [key for key, members in groups.items() if event.intersection(members)]
        for key in keys[1:]:
            groups[keys[0]] += groups.pop(key)
    return list(groups.values())


def _touched(
    found: Mapping[_Entry, tuple[Indices, Indices]], groups: Sequence[Sequence[int]], count: int
) -> list[dict[_Entry, tuple[Indices, Indices]]]:
    """Return, for every group, positions and classes on the layer sides that it touches."""
    group_of = np.zeros(count, dtype=np.int64)
    for number, members in enumerate(groups):
        group_of[list(members)] = number
    touched: list[dict[_Entry, tuple[Indices, Indices]]] = [{} for _ in groups]
    for entry, (where, classes) in found.items():
        numbers = group_of[classes]
        for number in np.unique(numbers).tolist():
            mask = numbers == number
            touched[number][entry] = (where[mask], classes[mask])
    return touched


def _coupling(
    members: Sequence[int],
    touched: Mapping[_Entry, tuple[Indices, Indices]],
    model: nn.Module,
    taken: set[str],
) -> Coupling | None:
    """Return the coupling of some classes; None where no layer produces them.

    Args:
        members: The classes.
        touched: Positions and their classes by layer side, in forward order.
        model: The model.
        taken: Names of other couplings.
    """
    producers = {}
    for (layer, side), (where, _) in touched.items():
        module = model.get_submodule(layer)
        if side == "out" and isinstance(module, nn.Linear | _ConvNd) and not is_depthwise(module):
            producers[layer] = len(where) == len(module.weight)
    if not producers:
        return None
    # A wider producer, of which this coupling is a part, gives it no name if another can.
    names = sorted(producers, key=lambda layer: (layer in taken, not producers[layer]))
    name = names[0]
    number = 2
    while name in taken:
        name, number = f"{names[0]}#{number}", number + 1
    first = touched[names[0], "out"][1]
    order = list(dict.fromkeys(first.tolist()))
    order += sorted(set(members) - set(order))
    rank = {member: index for index, member in enumerate(order)}
    taps = []
    for entry, (where, classes) in touched.items():
        rows = np.array([rank[one] for one in classes.tolist()])
        # Merged classes are uneven: such a coupling is frozen and needs no table.
        even = np.bincount(rows, minlength=len(order))
        width = int(even[0]) if len(set(even.tolist())) == 1 else 0
        index = where[np.lexsort((where, rows))] if width else where[:0]
        taps.append(Tap(layer=entry[0], side=entry[1], index=index.reshape(len(order), width)))
    channels = len(order) if all(tap.index.size for tap in taps) else len(first)
    return Coupling(name=name, channels=channels, taps=tuple(taps))


def _with_obstacle(coupling: Coupling, shared: Mapping[str, str]) -> Coupling:
    """Add what stands against cutting its layers, unless something else does already."""
    reason = next((shared[layer] for layer in coupling.layers if layer in shared), None)
    if coupling.obstacle is not None or reason is None:
        return coupling
    return dataclasses.replace(coupling, obstacle=reason)


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
