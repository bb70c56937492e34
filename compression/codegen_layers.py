"""Source text of a module tree: the constructors of its layers inside plain containers."""

from __future__ import annotations

import inspect
import json
import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compression.errors import CompressionError

WIDTH = 100

_MISSING = object()

# Constructor arguments that a module does not keep under their own name.
_DERIVED: Mapping[str, Callable[[nn.Module], Any]] = {
    "bias": lambda m: (
        (getattr(m, "bias", None) is not None) or getattr(m, "in_proj_bias", None) is not None
    ),
    "add_bias_kv": lambda m: getattr(m, "bias_k", None) is not None,
    "init": lambda m: 0.25,  # PReLU's start value: the weights are loaded over it
}

# Arguments that only place a tensor or are spellings kept for old callers.
_SKIPPED = frozenset({"self", "device", "dtype", "min_value", "max_value", "args", "kwargs"})


def literal(value: Any) -> str:
    """Return the source text of a constant.

    Raises:
        CompressionError: The value has no literal form.
    """
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "math.nan" if math.isnan(value) else "math.inf" if value > 0 else "-math.inf"
    if isinstance(value, tuple):
        inner = ", ".join(literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(literal(item) for item in value)}]"
    raise CompressionError(f"{value!r} ({type(value).__name__}) has no literal form")


def constructor(layer: nn.Module, path: str) -> str:
    """Return the expression that makes a layer of `torch.nn` anew, defaults left out.

    Raises:
        CompressionError: The layer is not one of `torch.nn`, or carries something that its
            constructor would not make.
    """
    kind = type(layer)
    if getattr(nn, kind.__name__, None) is not kind:
        raise CompressionError(
            f"Layer {path!r} is a {kind.__module__}.{kind.__name__}, not torch.nn"
        )
    if hasattr(layer, "parametrizations") or layer._forward_pre_hooks or layer._forward_hooks:
        raise CompressionError(f"Layer {path!r} carries hooks or a parametrization")
    arguments = []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in _SKIPPED:
            continue
        value = _argument(layer, name)
        required = parameter.default is inspect.Parameter.empty
        if value is _MISSING:
            if required:
                raise CompressionError(f"Layer {path!r}: its argument {name!r} is not kept")
            continue
        value = _simplify(layer, name, value)
        if required:
            arguments.append(literal(value))
        elif value != _simplify(layer, name, parameter.default):
            arguments.append(f"{name}={literal(value)}")
    return f"nn.{kind.__name__}({', '.join(arguments)})"


def _argument(layer: nn.Module, name: str) -> Any:
    if name in _DERIVED:
        return _DERIVED[name](layer)
    return getattr(layer, name, _MISSING)


def _simplify(layer: nn.Module, name: str, value: Any) -> Any:
    """Write `(3, 3)` as `3` where the constructor means the same by it."""
    windows = ("kernel_size", "stride", "padding", "dilation", "output_padding")
    if "Conv" in type(layer).__name__ and name in windows and isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else value
    if name == "stride" and value is None:
        return getattr(layer, "kernel_size", None)
    return value


def attribute(path: str) -> str:
    """Return how a layer is reached: `layer1.0.conv1` -> `self.layer1[0].conv1`."""
    text = "self"
    for depth, part in enumerate(path.split(".")):
        if part.isdecimal() and depth > 0:
            text += f"[{int(part)}]"
        elif _is_plain(part):
            text += f".{part}"
        else:
            text = f"getattr({text}, {json.dumps(part)})"
    return text


def _is_plain(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def init_lines(leaves: Mapping[str, str], indent: int) -> list[str]:
    """Return the assignments that build the module tree.

    Args:
        leaves: Expression by dotted path, in forward order.
        indent: Spaces in front of every line.
    """
    tree: dict[str, Any] = {}
    for path, expression in leaves.items():
        *above, name = path.split(".")
        here = tree
        for part in above:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise CompressionError(f"Layer {path!r} lies inside another layer")
        here[name] = expression
    lines = []
    for name, node in tree.items():
        if isinstance(node, str) and node.startswith("buffer:"):
            before, after = f"self.register_buffer({json.dumps(name)}, ", ")"
        elif _is_plain(name):
            before, after = f"self.{name} = ", ""
        else:
            before, after = f"self.add_module({json.dumps(name)}, ", ")"
        lines += _layout(before, _expression(node), after, indent)
    return lines


Expression = str | tuple[str, list[tuple[str, Any]], str]
"""A text, or an opening, its arguments (prefix and expression) and a closing."""


def _expression(node: Any) -> Expression:
    if isinstance(node, str):
        return node.removeprefix("buffer:")
    names = list(node)
    if all(name.isdecimal() for name in names):
        order = sorted(names, key=int)
        items: list[tuple[str, Any]] = []
        for position in range(int(order[-1]) + 1):
            # A number that the forward pass never calls keeps its place, so that keys stay.
            inner = node.get(str(position))
            items.append(("", _expression(inner) if inner is not None else "nn.Identity()"))
        return "nn.ModuleList([", items, "])"
    if all(_is_plain(name) for name in names):
        return "Group(", [(f"{name}=", _expression(node[name])) for name in names], ")"
    quoted = [(f"{json.dumps(name)}: ", _expression(node[name])) for name in names]
    return "Group(**{", quoted, "})"


def _flat(expression: Expression) -> str:
    if isinstance(expression, str):
        return expression
    opening, items, closing = expression
    return opening + ", ".join(prefix + _flat(item) for prefix, item in items) + closing


def _layout(before: str, expression: Expression, after: str, indent: int) -> list[str]:
    pad = " " * indent
    flat = f"{pad}{before}{_flat(expression)}{after}"
    if len(flat) <= WIDTH:
        return [flat]
    if isinstance(expression, str):
        return break_call(before + expression + after, indent)
    opening, items, closing = expression
    if not opening.endswith("Group("):
        head, inner = opening.split("(", 1)
        lines = [f"{pad}{before}{head}(", f"{pad}    {inner}"]
        for prefix, item in items:
            lines += _layout(prefix, item, ",", indent + 8)
        return [*lines, f"{pad}    {closing[0]}", f"{pad}){after}"]
    lines = [f"{pad}{before}{opening}"]
    for prefix, item in items:
        lines += _layout(prefix, item, ",", indent + 4)
    return [*lines, f"{pad}{closing}{after}"]


def break_call(text: str, indent: int) -> list[str]:
    """Break `head(arguments)tail` after its first bracket and between arguments."""
    pad = " " * indent
    start = min((text.find(c) for c in "([" if c in text), default=-1)
    if len(pad) + len(text) <= WIDTH or start < 0:
        return [pad + text]
    close = start + 1 + _closing(text[start + 1 :])
    lines = [pad + text[: start + 1]]
    for argument in split_arguments(text[start + 1 : close]):
        lines += break_call(f"{argument},", indent + 4)
    return [*lines, pad + text[close:]]


def _closing(text: str) -> int:
    depth = 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            if depth == 0:
                return position
            depth -= 1
    return len(text)


def split_arguments(text: str) -> Sequence[str]:
    """Split at the commas outside any bracket."""
    parts, start, depth = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def tensor_expression(value: Tensor, *, trainable: bool) -> str:
    """Return an expression for a parameter or buffer of this shape, to be loaded over."""
    dtype = "" if value.dtype.is_floating_point and value.element_size() == 4 else value.dtype
    shape = ", ".join(str(size) for size in value.shape) or "()"
    zeros = f"torch.zeros({shape}{f', dtype={dtype}' if dtype else ''})"
    return f"nn.Parameter({zeros})" if trainable else f"buffer:{zeros}"
