"""Source text of a forward pass, from a graph that `torch.fx` traced."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx

from compression.codegen_layers import WIDTH, attribute, break_call, literal
from compression.errors import CompressionError

_INFIX: Mapping[Callable[..., Any], str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.matmul: "@",
    operator.pow: "**",
    # The in-place forms are emitted out of place; `_check_in_place` makes sure that is the same.
    operator.iadd: "+",
    operator.isub: "-",
    operator.imul: "*",
    operator.itruediv: "/",
    torch.add: "+",
    torch.mul: "*",
}
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)

# Tensors are named like this, in this order; a network rarely needs more than three at a time.
_NAMES = ("x", "y", "z", "u", "v", "w", "s", "t")
_INDENT = 8


def forward_lines(graph: fx.Graph) -> list[str]:
    """Return the body of `forward(self, x)`.

    A value that is used once, by the next operation, is written inside it; a name is given again
    as soon as its value is no longer needed; a comment marks where each block of the original
    network begins.

    Raises:
        CompressionError: An operation has no plain PyTorch form.
    """
    return _Writer(graph).lines()


class _Writer:
    def __init__(self, graph: fx.Graph) -> None:
        self._nodes = [node for node in graph.nodes if node.op != "get_attr"]
        self._text: dict[fx.Node, str] = {}
        self._compound: set[fx.Node] = set()
        self._last_use: dict[fx.Node, int] = {}
        self._busy: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                self._text[node] = attribute(str(node.target))
        for position, node in enumerate(self._nodes):
            for source in node.all_input_nodes:
                self._last_use[source] = position

    def lines(self) -> list[str]:
        lines: list[str] = []
        scope = ""
        for position, node in enumerate(self._nodes):
            if node.op == "placeholder":
                self._text[node] = "x"
                self._busy["x"] = self._last_use.get(node, position)
                continue
            if node.op == "output":
                (result,) = node.args
                lines += break_call(f"return {self._argument(result)}", _INDENT)
                continue
            expression = self._call(node)
            block = _block(node)
            if block != scope:
                scope = block
                if block and not (lines and lines[-1].lstrip().startswith("#")):
                    lines.append(f"{' ' * _INDENT}# {block}")
                elif block:
                    lines[-1] = f"{' ' * _INDENT}# {block}"
            if self._inlines(node, position, expression):
                self._text[node] = expression
                continue
            name = self._name(node, position)
            lines += break_call(f"{name} = {expression}", _INDENT)
            self._text[node] = name
            self._compound.discard(node)
        return lines

    def _inlines(self, node: fx.Node, position: int, expression: str) -> bool:
        """Whether the next operation alone uses the value, and stays readable with it inside."""
        if position + 1 >= len(self._nodes) or list(node.users) != [self._nodes[position + 1]]:
            return False
        user = self._nodes[position + 1]
        if user.all_input_nodes.count(node) != 1 or _block(user) != _block(node):
            return user.op == "output" and len(expression) < WIDTH - _INDENT - 7
        uses = sum(1 for value in _flatten((user.args, user.kwargs)) if value is node)
        room = WIDTH - _INDENT - len("x = ") - len(self._head(user))
        return uses == 1 and len(expression) < room and expression.count("(") < 4

    def _head(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return attribute(str(node.target)) + "()"
        return " " * 30

    def _name(self, node: fx.Node, position: int) -> str:
        end = self._last_use.get(node, position)
        for name in (*_NAMES, *(f"x{n}" for n in range(2, 1000))):
            if self._busy.get(name, -1) <= position:
                self._busy[name] = end
                return name
        raise CompressionError("The forward pass holds more than a thousand values at once")

    def _call(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{attribute(str(node.target))}({self._arguments(node)})"
        if node.op == "call_method":
            receiver = self._operand(node.args[0])
            return f"{receiver}.{node.target}({self._arguments(node, skip=1)})"
        target: Any = node.target
        if target is operator.getitem:
            return f"{self._operand(node.args[0])}[{self._index(node.args[1])}]"
        if target is getattr:
            return f"{self._operand(node.args[0])}.{node.args[1]}"
        if target in _INFIX and len(node.args) == 2 and not node.kwargs:
            _check_in_place(node)
            self._compound.add(node)
            left, right = (self._operand(argument) for argument in node.args)
            return f"{left} {_INFIX[target]} {right}"
        return f"{function_name(target)}({self._arguments(node)})"

    def _arguments(self, node: fx.Node, *, skip: int = 0) -> str:
        positional = [self._argument(argument) for argument in node.args[skip:]]
        defaults = _defaults(node.target) if node.op == "call_function" else {}
        named = [
            f"{name}={self._argument(value)}"
            for name, value in node.kwargs.items()
            if name not in defaults or isinstance(value, fx.Node) or value != defaults[name]
        ]
        return ", ".join([*positional, *named])

    def _argument(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._text[value]
        if isinstance(value, tuple | list):
            inner = ", ".join(self._argument(item) for item in value)
            if isinstance(value, list):
                return f"[{inner}]"
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return str(value)
        if isinstance(value, torch.device):
            return f'torch.device("{value}")'
        if isinstance(value, slice):
            parts = (self._argument(part) for part in (value.start, value.stop, value.step))
            return f"slice({', '.join(parts)})"
        if value is Ellipsis:
            return "..."
        return literal(value)

    def _operand(self, value: Any) -> str:
        text = self._argument(value)
        return f"({text})" if value in self._compound else text

    def _index(self, value: Any) -> str:
        items = value if isinstance(value, tuple) else (value,)
        texts = []
        for item in items:
            if isinstance(item, slice):
                ends = [
                    "" if part is None else self._argument(part)
                    for part in (item.start, item.stop, item.step)
                ]
                texts.append(":".join(ends if ends[2] else ends[:2]))
            else:
                texts.append(self._argument(item))
        return ", ".join(texts) + ("," if len(items) == 1 and isinstance(value, tuple) else "")


def _defaults(target: Any) -> Mapping[str, Any]:
    """Return the default arguments of a function, as far as Python can see them."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def function_name(target: Any) -> str:
    """Return the public name of a function of PyTorch, or of `math`.

    Raises:
        CompressionError: It is neither, so that the generated file would need another import.
    """
    name = getattr(target, "__name__", "")
    for prefix, namespace in (("F", F), ("torch", torch)):
        if getattr(namespace, name, None) is target:
            return f"{prefix}.{name}"
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target!s}"
    if getattr(torch.Tensor, name, None) is target:
        return f"torch.Tensor.{name}"
    if getattr(target, "__module__", None) == "math":
        return f"math.{name}"
    if getattr(target, "__module__", None) == "builtins" and name in ("int", "float", "max", "min"):
        return name
    module = getattr(target, "__module__", None)
    raise CompressionError(f"The forward pass calls {module}.{name}, which is not PyTorch's")


def _check_in_place(node: fx.Node) -> None:
    """An in-place sum may be written as a plain one if nothing sees the old tensor afterwards."""
    source = node.args[0]
    if node.target not in _IN_PLACE or not isinstance(source, fx.Node):
        return
    if list(source.users)[-1:] != [node] and len(source.users) > 1:
        raise CompressionError(f"{node.name} changes a tensor in place that is used again later")


def _block(node: fx.Node) -> str:
    """Return the path of the innermost block the operation ran in; empty at the top."""
    if node.op == "call_module":
        return str(node.target).rpartition(".")[0]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    # A graph of `torch.export` opens the layers too: what ran in a layer belongs to its block.
    return path.rpartition(".")[0] if isinstance(node.target, torch._ops.OpOverload) else path


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _flatten(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flatten(item)]
    if isinstance(value, slice):
        return _flatten((value.start, value.stop, value.step))
    return [value]
