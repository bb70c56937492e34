"""The network that an ONNX graph becomes: layers with names, and the calls between them."""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compression.errors import ModelRefused
from compression.models.onnx_values import BATCHES, Activation, Array, Constant, Operator

MAX_ACTIVATION_VALUES = 1 << 28
"""More values in one activation of one input than any classification network has."""

SPARE_BYTES = 1 << 20
COPIES = 8
"""Weights may take this many times the file (one tensor may serve several layers), and a spare."""

_RESERVED = frozenset({*dir(fx.GraphModule), "training", "graph", "code"})


class Network:
    """Collects layers, parameters and calls; every call is evaluated on shapes at once.

    Attributes:
        input: The network's input, `N x C x H x W`.
    """

    def __init__(self, input_shape: tuple[int, int, int], file_bytes: int) -> None:
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._leaves: set[str] = set()
        self._folders: set[str] = set()
        self._layers: dict[object, tuple[str, nn.Module]] = {}
        self._tied: dict[object, nn.Parameter] = {}
        self._left_bytes = COPIES * file_bytes + SPARE_BYTES
        self._batch: Activation | None = None
        results = tuple(torch.empty(batch, *input_shape, device="meta") for batch in BATCHES)
        self.input = Activation(self._graph.placeholder("x"), (results[0], results[1]))

    def finish(self, output: Activation) -> fx.GraphModule:
        """Return the network in eval mode.

        Raises:
            ModelRefused: Its output does not have one row per input.
        """
        for batch, shape in zip(BATCHES, output.shapes, strict=True):
            if not shape or shape[0] != batch:
                raise ModelRefused(
                    f"The ONNX network maps {batch} inputs to shape {list(shape)}: its batch size "
                    "is not free; export it with a dynamic batch axis"
                )
        self._graph.output(output.node)
        for node in reversed(list(self._graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                self._graph.erase_node(node)
        return fx.GraphModule(self._root, self._graph, class_name="OnnxNetwork").eval()

    # Calls.

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Activation:
        """Append a call of a function; activations among its arguments are passed on."""
        results = self._run(function, args, kwargs)
        nodes = _nodes((args, kwargs))
        return self._result(self._graph.call_function(function, *nodes), results)

    def method(self, name: str, x: Activation, *args: Any) -> Activation:
        """Append a call of a method of a tensor."""

        def run(tensor: Tensor, *rest: Any) -> Any:
            return getattr(tensor, name)(*rest)

        results = self._run(run, (x, *args), {})
        return self._result(self._graph.call_method(name, _nodes((x, *args))), results)

    def pieces(self, function: Callable[..., Any], *args: Any) -> Sequence[Activation]:
        """Append a call that returns several tensors."""
        results = self._run(function, args, {})
        node = self._graph.call_function(function, _nodes(args))
        if len(results[0]) != len(results[1]):
            raise ValueError("the number of pieces depends on the batch size")
        return [
            self._result(
                self._graph.call_function(operator.getitem, (node, index)),
                (results[0][index], results[1][index]),
            )
            for index in range(len(results[0]))
        ]

    def batch_size(self) -> Activation:
        """Return the number of inputs."""
        if self._batch is None:
            with self._graph.inserting_after(self.input.node):
                node = self._graph.call_method("size", (self.input.node, 0))
            self._batch = Activation(node, BATCHES)
        return self._batch

    def _run(
        self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        with torch.no_grad():
            first, second = (
                function(*_at(args, side), **{key: _at(v, side) for key, v in kwargs.items()})
                for side in (0, 1)
            )
        for result in first if isinstance(first, tuple | list) else (first,):
            values = math.prod(result.shape) // BATCHES[0] if isinstance(result, Tensor) else 0
            if values > MAX_ACTIVATION_VALUES:
                raise ValueError(
                    f"it makes {values} values of one input; at most {MAX_ACTIVATION_VALUES} "
                    "are accepted"
                )
        return first, second

    def _result(self, node: fx.Node, results: tuple[Any, Any]) -> Activation:
        return Activation(node, results)

    # Layers.

    def layer(
        self,
        op: Operator,
        layer: nn.Module,
        x: Activation,
        tensors: Mapping[str, Array] | None = None,
        *,
        suffix: str = "",
    ) -> Activation:
        """Append a call of a layer.

        Args:
            op: The node it comes from; a node with the same weights and settings is a second call
                of the same layer.
            layer: Made on the device `meta`; gets its tensors here.
            x: Its input.
            tensors: By attribute; buffers where the layer has a buffer of that name.
            suffix: Appended to the name, for the second layer of a node.
        """
        layer.eval()
        # Activation functions keep shapes; running them without data is slow.
        pointwise = type(layer).__module__ == nn.modules.activation.__name__ and not tensors
        results = x.results if pointwise else self._run(layer, (x,), {})
        weights = [v.name for v in op.inputs[1:] if isinstance(v, Constant)]
        key = (op.kind, tuple(weights), str(layer), suffix) if tensors and weights else None
        if key is not None and key in self._layers:
            path, _ = self._layers[key]
        else:
            path = self._free(self.path_of(op) + suffix)
            for name, array in (tensors or {}).items():
                self._place(layer, name, array, weights)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.num_batches_tracked = torch.tensor(0)
            self._add(path, layer)
            if key is not None:
                self._layers[key] = (path, layer)
        return Activation(self._graph.call_module(path, (x.node,)), results)

    def operand(self, op: Operator, constant: Constant) -> Activation:
        """Return a constant as a parameter of the network (integers: a buffer)."""
        if not constant.is_fixed:
            raise ValueError(f"the constant {constant.name!r} depends on the batch size")
        array = constant.arrays[0]
        key = ("operand", constant.name)
        if key not in self._layers:
            path = self._free(_clean(constant.name) or self.path_of(op) + ".constant")
            tensor = self._copy(array)
            folder, _, name = path.rpartition(".")
            home = self._folder(folder)
            if array.dtype == np.float32:
                home.register_parameter(name, nn.Parameter(tensor))
            else:
                home.register_buffer(name, tensor)
            self._take(path)
            self._layers[key] = (path, home)
        path, _ = self._layers[key]
        dtype = torch.float32 if array.dtype == np.float32 else torch.int64
        shape = torch.empty(array.shape, dtype=dtype, device="meta")
        return Activation(self._graph.get_attr(path), (shape, shape))

    def absorb_bias(self, x: Activation, bias: Array) -> bool:
        """Make a constant that is added to a layer's output the layer's bias, if it has none.

        Returns:
            Whether it could be: the layer is called once and the constant has one value per
            output.
        """
        if x.node.op != "call_module" or not isinstance(x.node.target, str):
            return False
        path = x.node.target
        layer = self._root.get_submodule(path)
        calls = sum(node.target == path for node in self._graph.nodes)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.bias is not None or calls > 1:
            return False
        width = layer.weight.shape[0]
        per_output = (width,) if isinstance(layer, nn.Linear) else (width, 1, 1)
        shape = bias.shape[max(0, bias.ndim - len(per_output)) :]
        if bias.ndim > x.rank or shape != per_output or bias.size != width:
            return False
        layer.bias = nn.Parameter(self._copy(bias.reshape(-1)))
        self._layers = {k: v for k, v in self._layers.items() if v[1] is not layer}
        return True

    def path_of(self, op: Operator) -> str:
        """Return a readable path: of the weight, where it says, otherwise of the node."""
        for value in op.inputs[1:]:
            if isinstance(value, Constant) and value.name.endswith((".weight", "/weight")):
                path = _clean(value.name[: -len(".weight")])
                if path:
                    return path
        weighted = any(isinstance(v, Constant) and v.arrays[0].ndim > 1 for v in op.inputs[1:])
        name = op.name
        if "/" in name:
            scopes = name.strip("/").split("/")
            last = scopes.pop() if scopes[-1].startswith(op.kind) else ""
            name = _scope(scopes)
            word = name.rpartition(".")[2].rstrip("0123456789_").lower()
            if not name or (last and not weighted and not (word and word in last.lower())):
                name = f"{name}.{(last or op.kind).lower()}"
        return _clean(name) or op.kind.lower()

    # Names and tensors.

    def _free(self, path: str) -> str:
        """Return the path, or a similar one that neither is taken nor lies inside a layer."""
        number, found = 1, path
        while True:
            parents = [found[: m.start()] for m in re.finditer(r"\.", found)]
            blocked = next((parent for parent in parents if parent in self._leaves), None)
            if blocked is not None:
                found = f"{blocked}_{found[len(blocked) + 1 :]}"
                path = found
            elif found in self._leaves or found in self._folders:
                number += 1
                found = f"{path}_{number}"
            else:
                return found

    def _take(self, path: str) -> None:
        self._leaves.add(path)
        self._folders.update(path[: m.start()] for m in re.finditer(r"\.", path))

    def _folder(self, path: str) -> nn.Module:
        here = self._root
        for part in path.split(".") if path else ():
            if part not in here._modules:
                here.add_module(part, nn.Module())
            here = here.get_submodule(part)
        return here

    def _add(self, path: str, layer: nn.Module) -> None:
        folder, _, name = path.rpartition(".")
        self._folder(folder).add_module(name, layer)
        self._take(path)

    def _place(self, layer: nn.Module, name: str, array: Array, weights: Sequence[str]) -> None:
        if name in layer._buffers:
            setattr(layer, name, self._copy(array))
            return
        # Matrices of one initializer are one tensor; exporters also merge vectors that merely
        # happen to be equal, such as fresh biases, so those are copied.
        key = (weights[0] if weights else "", name, array.shape, array.strides)
        if array.ndim < 2 or not weights:
            setattr(layer, name, nn.Parameter(self._copy(array)))
            return
        if key not in self._tied or not _equal(self._tied[key], array):
            self._tied[key] = nn.Parameter(self._copy(array))
        setattr(layer, name, self._tied[key])

    def _copy(self, array: Array) -> Tensor:
        self._left_bytes -= array.nbytes
        if self._left_bytes < 0:
            raise ValueError(f"the network's weights take more than {COPIES} times the file")
        return torch.from_numpy(np.array(array, order="C", copy=True))


def _equal(parameter: nn.Parameter, array: Array) -> bool:
    return bool(np.array_equal(parameter.detach().numpy(), array))


def _nodes(value: Any) -> Any:
    """Replace activations by their nodes."""
    if isinstance(value, Activation):
        return value.node
    if isinstance(value, tuple | list):
        return type(value)(_nodes(item) for item in value)
    if isinstance(value, dict):
        return {key: _nodes(item) for key, item in value.items()}
    return value


def _at(value: Any, side: int) -> Any:
    """Replace activations by their shapes at one of the batch sizes."""
    if isinstance(value, Activation):
        return value.results[side]
    if isinstance(value, tuple | list):
        return type(value)(_at(item, side) for item in value)
    return value


def _scope(scopes: Sequence[str]) -> str:
    """Join `layer1`, `layer1.0`, `conv1` to `layer1.0.conv1`: exporters repeat the parent."""
    path: list[str] = []
    for scope in scopes:
        if path and scope.startswith(f"{path[-1]}."):
            path.pop()
        path.append(scope)
    return ".".join(path)


def _clean(name: str) -> str:
    """Return the name as a dotted path of plain words that no method of a module has."""
    parts = []
    for part in re.split(r"[./:]+", name)[:16]:
        word = re.sub(r"[^A-Za-z0-9_]", "_", part)[:64].strip("_")
        if word:
            taken = word in _RESERVED or keyword.iskeyword(word)
            parts.append(f"{word}_" if taken else word)
    return ".".join(parts)
