"""Thinning a module: a structural copy whose tensors are slices of the dense ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compression.attention import open_to_fewer_heads
from compression.coupling import Coupling, Indices
from compression.errors import CompressionError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """What stays of one layer.

    Attributes:
        kept_in: Ascending positions of its input side that stay; None where all do.
        kept_out: The same for its output side.
        parameters: By name, parameters of an attention layer's own that lose positions: the axis
            and what stays along it.

    Positions on the input side are those of the weight's second axis, inside one group.
    """

    kept_in: Indices | None = None
    kept_out: Indices | None = None
    parameters: Mapping[str, tuple[int, Indices]] = dataclasses.field(default_factory=dict)


def cuts_of(
    model: nn.Module, couplings: Iterable[Coupling], kept: Mapping[str, Indices]
) -> dict[str, Cut]:
    """Return what stays of every layer that loses something.

    Args:
        model: The dense model.
        couplings: Those of the model.
        kept: For some of them, by name: ascending channels that stay.
    """
    removed: dict[str, dict[str, list[Indices]]] = {}
    own: dict[str, dict[str, tuple[int, Indices]]] = {}
    for coupling in couplings:
        if coupling.name not in kept:
            continue
        gone = np.ones(coupling.channels, dtype=bool)
        gone[kept[coupling.name]] = False
        for tap in coupling.taps:
            removed.setdefault(tap.layer, {}).setdefault(tap.side, []).append(
                tap.index[gone].ravel()
            )
        for cut in coupling.parameters:
            stays = np.sort(cut.index[~gone].ravel())
            own.setdefault(cut.layer, {})[cut.parameter] = (cut.axis, stays)
    cuts = {layer: Cut(parameters=parameters) for layer, parameters in own.items()}
    for layer, sides in removed.items():
        widths = dict(zip(("in", "out"), widths_of(model.get_submodule(layer)), strict=True))
        rest = {
            side: np.setdiff1d(np.arange(widths[side]), np.concatenate(lost), assume_unique=True)
            for side, lost in sides.items()
        }
        cuts[layer] = Cut(
            kept_in=rest.get("in"), kept_out=rest.get("out"), parameters=own.get(layer, {})
        )
    return cuts


def widths_of(module: nn.Module) -> tuple[int, int]:
    """Return the lengths of the two axes that a layer can be cut along, by its attributes.

    Input and output channels (features); the input channels of one group, where it has groups.
    """
    match module:
        case _ConvNd():
            return module.in_channels // module.groups, module.out_channels
        case nn.Linear():
            return module.in_features, module.out_features
        case _NormBase():
            return module.num_features, module.num_features
        case nn.PReLU():
            return module.num_parameters, module.num_parameters
    raise CompressionError(f"{type(module).__name__} has no channels that could be removed")


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter per channel and hands channels through one by one."""
    return (
        isinstance(module, _ConvNd)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def thin(model: nn.Module, cuts: Mapping[str, Cut]) -> nn.Module:
    """Return a copy of `model` that keeps only what the cuts keep.

    The copy has the same classes and attributes, except for the numbers of channels, and shares
    no storage with the original. Gradients are not copied.

    Args:
        model: The dense model; it is left as it was.
        cuts: By layer.
    """
    replaced: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        replaced[id(tensor)] = tensor
    with torch.no_grad():
        for layer, cut in cuts.items():
            for tensor, slice_ in _slices(model.get_submodule(layer), cut):
                replaced[id(tensor)] = slice_
        for tensor in (*model.parameters(), *model.buffers()):
            new = replaced[id(tensor)].detach()
            new = new.clone() if new.data_ptr() == tensor.data_ptr() else new
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            replaced[id(tensor)] = new
    # deepcopy takes every tensor from the table instead of copying the dense weights.
    thinned: nn.Module = copy.deepcopy(model, replaced)
    for layer, cut in cuts.items():
        _set_attributes(thinned.get_submodule(layer), cut)
    for layer, cut in cuts.items():
        if cut.parameters:
            open_to_fewer_heads(thinned.get_submodule(layer))
    return thinned


def _slices(module: nn.Module, cut: Cut) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of a tensor of the layer and what stays of it."""
    pairs = []
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if tensor is None or (isinstance(module, nn.PReLU) and tensor.numel() == 1):
            continue
        rest: Tensor = tensor
        if cut.kept_out is not None:
            rest = rest.index_select(0, torch.from_numpy(cut.kept_out))
        if cut.kept_in is not None and name == "weight":
            rest = rest.index_select(1, torch.from_numpy(cut.kept_in))
        pairs.append((tensor, rest))
    for name, (axis, kept) in cut.parameters.items():
        parameter = module.get_parameter(name)
        pairs.append((parameter, parameter.index_select(axis, torch.from_numpy(kept))))
    return pairs


def _set_attributes(module: nn.Module, cut: Cut) -> None:
    """Make the layer's numbers of channels those of its tensors."""
    inputs = None if cut.kept_in is None else len(cut.kept_in)
    outputs = None if cut.kept_out is None else len(cut.kept_out)
    match module:
        case _ConvNd() if is_depthwise(module):
            if outputs is not None:
                module.in_channels = module.out_channels = module.groups = outputs
        case _ConvNd():
            if inputs is not None:
                module.in_channels = inputs * module.groups
            module.out_channels = module.out_channels if outputs is None else outputs
        case nn.Linear():
            module.in_features = module.in_features if inputs is None else inputs
            module.out_features = module.out_features if outputs is None else outputs
        case _NormBase() if outputs is not None:
            module.num_features = outputs
        case nn.PReLU() if outputs is not None and module.num_parameters > 1:
            module.num_parameters = outputs
