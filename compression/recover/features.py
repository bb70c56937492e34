"""What layers inside a student and its teacher compute, read while they run.

Layers are named by dotted path; the student has the teacher's paths, since compression keeps
them. In-place functions that follow a layer act on the captured tensor too, in both networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compression.backend import Backend
from compression.errors import CompressionError


class Capture:
    """Keeps the tensors that named layers give (or take) in the latest forward pass.

    A context manager: the hooks are on the layers inside of the `with` only. A layer that is
    called several times is seen as its last call.

    Attributes:
        tensors: By layer, with their graph; empty before the first pass.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], side: Literal["in", "out"] = "out"
    ) -> None:
        """Name what is captured.

        Raises:
            CompressionError: The model has no such layer.
        """
        self.tensors: dict[str, Tensor] = {}
        known = dict(model.named_modules())
        missing = [name for name in layers if name not in known]
        if missing:
            raise CompressionError(
                f"Feature layer {missing[0]!r} is none of the {len(known)} layers of "
                f"{type(model).__name__}"
            )
        self._modules = {name: known[name] for name in layers}
        self._side = side
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Capture:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeper(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.tensors.clear()

    def of(self, layer: str) -> Tensor:
        """Return what a layer gave (or took) in the latest pass.

        Raises:
            CompressionError: The pass did not reach the layer.
        """
        if layer not in self.tensors:
            raise CompressionError(f"Feature layer {layer!r} took no part in the forward pass")
        return self.tensors[layer]

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found = output if self._side == "out" else (inputs[0] if inputs else None)
            if not isinstance(found, Tensor):
                raise CompressionError(
                    f"Feature layer {name!r} ({type(module).__name__}) handles "
                    f"{type(found).__name__}; a tensor is required"
                )
            self.tensors[name] = found

        return keep


def penultimate_layer(model: nn.Module, inputs: Tensor, backend: Backend) -> str:
    """Return the linear layer that runs last: what it takes are the penultimate features.

    Args:
        model: Left as it was, in its mode; runs once.
        inputs: `B x C x H x W`.
        backend: How to compute.

    Raises:
        CompressionError: No linear layer runs.
    """
    order = [
        name
        for name, _ in _outputs(model, inputs, backend)
        if isinstance(model.get_submodule(name), nn.Linear)
    ]
    if not order:
        raise CompressionError(
            f"{type(model).__name__} runs no linear layer; name the feature layers"
        )
    return order[-1]


def stage_ends(model: nn.Module, inputs: Tensor, backend: Backend) -> tuple[str, ...]:
    """Return the last layer at each resolution of more than one position, in forward order.

    Where a container gives what its last layer gives, the container is named: of the CIFAR
    ResNets, `layer1`, `layer2` and `layer3`.

    Args:
        model: Left as it was, in its mode; runs once.
        inputs: `B x C x H x W`.
        backend: How to compute.

    Raises:
        CompressionError: No layer gives maps.
    """
    last: dict[tuple[int, ...], str] = {}
    for name, shape in _outputs(model, inputs, backend):
        if name and len(shape) == 4 and shape[2] * shape[3] > 1:
            last.pop(tuple(shape[2:]), None)
            last[tuple(shape[2:])] = name
    if not last:
        raise CompressionError(f"{type(model).__name__} has no layer that gives maps B x C x H x W")
    return tuple(last.values())


def _outputs(model: nn.Module, inputs: Tensor, backend: Backend) -> list[tuple[str, torch.Size]]:
    """Return every call of a module that gives one tensor: its name and the tensor's shape."""
    calls: list[tuple[str, torch.Size]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            del module, inputs
            if isinstance(output, Tensor):
                calls.append((name, output.shape))

        return see

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules()]
    try:
        with torch.inference_mode():
            backend.forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls
