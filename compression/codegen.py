"""From a PyTorch module to plain source text that anyone can load without us.

The module is traced; layers of `torch.nn` stay layers, everything else becomes the operations that
ran. Names of parameters are kept, so the weights fit the original network's keys. Where the forward
pass cannot be traced symbolically, it is written in the operators of `torch.export`: as portable,
less pleasant to read.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from compression.codegen_forward import forward_lines
from compression.codegen_layers import constructor, init_lines, tensor_expression
from compression.codegen_trace import FORWARD_ERRORS, trace_layers, trace_operators
from compression.errors import CompressionError

_LOAD_ERRORS: tuple[type[Exception], ...] = (
    SyntaxError,
    ImportError,
    NameError,
    *FORWARD_ERRORS,
)


@dataclasses.dataclass(frozen=True, slots=True)
class GeneratedModel:
    """A network as text and weights.

    Attributes:
        source: A Python file with `build()` and `load(folder)`; imports torch and safetensors.
        state: The weights `build().load_state_dict` takes, contiguous, on the CPU.
    """

    source: str
    state: Mapping[str, Tensor]


def generate(model: nn.Module, input_shape: tuple[int, int, int]) -> GeneratedModel:
    """Write a model as plain PyTorch source, and check that it computes the same, bit for bit.

    Args:
        model: A float32 module with one tensor in and one out; written as in `eval` mode.
        input_shape: C, H, W; checked with one and with three inputs of this shape.

    Raises:
        CompressionError: The forward pass cannot be traced, an operation or layer has no plain
            form, or the source computes something else; the message names the reason.
    """
    frozen = copy.deepcopy(model).eval()
    try:
        leaves, forward = _write(frozen, trace_layers(frozen))
    except CompressionError as error:
        try:
            leaves, forward = _write(frozen, trace_operators(frozen, input_shape))
        except CompressionError as second:
            raise CompressionError(f"{error}; by torch.export: {second}") from error
    source = _source(leaves, forward, input_shape)
    rebuilt = _build(source)
    known = frozen.state_dict()
    missing = sorted(set(rebuilt.state_dict()) - set(known))
    if missing:
        raise CompressionError(f"The generated source has weights that the model lacks: {missing}")
    state = {
        name: known[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in rebuilt.state_dict()
    }
    generated = GeneratedModel(source, state)
    _check_equal(generated, frozen, rebuilt, input_shape)
    return generated


def _write(model: nn.Module, graph: fx.Graph) -> tuple[dict[str, str], list[str]]:
    return _leaves(model, graph), forward_lines(graph)


def _leaves(model: nn.Module, graph: fx.Graph) -> dict[str, str]:
    """Return the expression of every layer, parameter and buffer that the graph uses."""
    leaves: dict[str, str] = {}
    trainable = dict(model.named_parameters(remove_duplicate=False))
    for node in graph.nodes:
        path = str(node.target)
        if path in leaves:
            continue
        if node.op == "call_module":
            leaves[path] = constructor(model.get_submodule(path), path)
        elif node.op == "get_attr":
            value: Any = model
            for part in path.split("."):
                value = getattr(value, part)
            if not isinstance(value, Tensor):
                raise CompressionError(f"Attribute {path!r} is a {type(value).__name__}")
            leaves[path] = tensor_expression(value, trainable=path in trainable)
    # In the order of the original network, so that the file reads like it.
    order = {name: i for i, name in enumerate(_paths(model))}
    return dict(sorted(leaves.items(), key=lambda item: order.get(item[0], len(order))))


def _paths(model: nn.Module) -> list[str]:
    paths = []
    for prefix, module in model.named_modules():
        paths.append(prefix)
        own = (*module._parameters, *module._buffers)
        paths += [f"{prefix}.{name}" if prefix else name for name in own]
    return paths


_HEADER = '''"""A compressed network in plain PyTorch.

Input: float32, N x {channels} x {height} x {width}, preprocessed as README.md beside this file
says. Output: logits. `load()` returns it with its weights, ready to run; torch and safetensors are
all it needs.
"""

{imports}


'''

_GROUP = '''class Group(nn.Module):
    """Gives the layers of one block their names."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, (nn.Module, nn.Parameter)):
                setattr(self, name, layer)
            else:
                self.register_buffer(name, layer)

    def __getitem__(self, number):
        return getattr(self, str(number))


'''

_NETWORK = '''class Network(nn.Module):
    """The network; names of layers are those of the network it was made from."""

    def __init__(self):
        super().__init__()
{layers}

    def forward(self, x):
{forward}


def build():
    """Return the network with untrained weights, in inference mode."""
    return Network().eval()


def load(folder=None):
    """Return the network with the weights of `model.safetensors`, in inference mode.

    Args:
        folder: Where the weights lie; by default beside this file.
    """
    folder = Path(__file__).parent if folder is None else Path(folder)
    model = build()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model
'''


def _source(
    leaves: Mapping[str, str], forward: list[str], input_shape: tuple[int, int, int]
) -> str:
    channels, height, width = input_shape
    layers = "\n".join(init_lines(leaves, 8)) or "        pass"
    body = "\n".join(forward)
    code = layers + body
    imports = ["from pathlib import Path", ""]
    if "math." in code:
        imports.insert(0, "import math")
    if "torch." in code:
        imports.append("import torch")
    if "F." in code:
        imports.append("import torch.nn.functional as F")
    imports += ["from safetensors.torch import load_file", "from torch import nn"]
    header = _HEADER.format(
        channels=channels, height=height, width=width, imports="\n".join(imports)
    )
    group = _GROUP if "Group(" in layers else ""
    return header + group + _NETWORK.format(layers=layers, forward=body)


def _build(source: str) -> nn.Module:
    with tempfile.TemporaryDirectory(prefix="codegen-") as folder:
        path = Path(folder) / "model.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("generated_model", path)
        if spec is None or spec.loader is None:
            raise CompressionError(f"Python cannot import from {path}")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            model = module.build()
        except _LOAD_ERRORS as error:
            raise CompressionError(f"The generated source does not load: {error}") from error
        if not isinstance(model, nn.Module):
            raise CompressionError("The generated source builds no module")
        return model


def _check_equal(
    generated: GeneratedModel, model: nn.Module, rebuilt: nn.Module, shape: tuple[int, int, int]
) -> None:
    rebuilt.load_state_dict(generated.state, strict=True)
    noise = torch.Generator().manual_seed(0)
    for rows in (1, 3):
        inputs = torch.randn(rows, *shape, generator=noise)
        with torch.no_grad():
            expected = model(inputs.clone())
            try:
                found = rebuilt(inputs)
            except FORWARD_ERRORS as error:
                raise CompressionError(f"The generated source does not run: {error}") from error
        if not torch.equal(expected, found):
            largest = float((expected - found).abs().max()) if found.shape == expected.shape else 0
            raise CompressionError(
                f"The generated source computes another function: outputs differ by {largest:.3g}"
            )
