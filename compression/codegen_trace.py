"""Graphs of a forward pass, from which its source text is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind

from compression.errors import CompressionError

# Functions that do nothing once a network is trained.
_IDENTITY_FUNCTIONS = frozenset({"stochastic_depth", "drop_path"})

# What a forward pass raises, traced or run; torch's own tracing errors derive from these.
FORWARD_ERRORS: tuple[type[Exception], ...] = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    NotImplementedError,
    KeyError,
    IndexError,
    AssertionError,
)


class _LayerTracer(fx.Tracer):
    """Keeps layers of `torch.nn` whole and opens every container and every custom module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        own = getattr(nn, type(m).__name__, None) is type(m) and not isinstance(m, containers)
        # An attention layer without some of its heads has a forward pass of its own.
        return own and "forward" not in vars(m)


def trace_layers(model: nn.Module) -> fx.Graph:
    """Return the graph of calls of layers and functions.

    Raises:
        CompressionError: The forward pass depends on values, or takes two inputs.
    """
    try:
        graph = _LayerTracer().trace(model)
    except FORWARD_ERRORS as error:
        raise CompressionError(f"The forward pass cannot be traced: {_line(error)}") from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for extra in inputs[1:]:
        if extra.users:
            raise CompressionError(f"The forward pass takes a second input, {extra.name!r}")
        graph.erase_node(extra)
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") in _IDENTITY_FUNCTIONS:
            node.replace_all_uses_with(node.args[0])
    for node in reversed(list(graph.nodes)):
        if not node.users and not _has_effect(node, model):
            graph.erase_node(node)
    return graph


def trace_operators(model: nn.Module, input_shape: tuple[int, int, int]) -> fx.Graph:
    """Return the graph of ATen operators, weights read by name.

    Raises:
        CompressionError: The forward pass cannot be exported, or hides constants of its own.
    """
    example = torch.zeros(2, *input_shape)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)
    except FORWARD_ERRORS as error:
        raise CompressionError(f"The forward pass cannot be exported: {_line(error)}") from error
    targets: dict[str, str] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            targets[spec.arg.name] = str(spec.target)
        elif spec.kind is not InputKind.USER_INPUT:
            raise CompressionError(f"The forward pass makes a tensor of its own, {spec.target!r}")
    graph = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in targets:
            if node.users:
                copied[node] = graph.get_attr(targets[node.name])
        elif node.op == "output":
            (result,) = node.args[0]
            graph.output(copied[result])
        elif node.users or node.op == "placeholder":
            copied[node] = graph.node_copy(node, lambda source: copied[source])
    return graph


def _has_effect(node: fx.Node, model: nn.Module) -> bool:
    """Whether a call whose result nobody reads must stay, since it changes a tensor in place."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = name in ("iadd", "isub", "imul", "itruediv", "setitem") or name.endswith("_")
    return in_place or bool(node.kwargs.get("inplace"))


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
