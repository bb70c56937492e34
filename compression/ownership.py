"""Which layer a tensor belongs to, recognised by its memory or by what it was made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

Owner = tuple[str, str]
"""Dotted path of a module and the name of its parameter or buffer."""


class Ownership:
    """Knows the parameters and buffers of a model, and what was made of them alone."""

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[int, list[Owner]] = {}
        self._sources: Any = WeakIdKeyDictionary()
        for name, module in model.named_modules():
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for parameter, tensor in own:
                if tensor.numel():
                    self._owners.setdefault(tensor.data_ptr(), []).append((name, parameter))

    def of(self, tensor: Any, running: str = "") -> Owner | None:
        """Return whose parameter or buffer the tensor is, a view of, or made of; None if nobody's.

        Args:
            tensor: Anything; what is no tensor has no owner.
            running: The module that runs: what several own belongs to it.
        """
        if not isinstance(tensor, Tensor):
            return None
        owners = self._owners.get(tensor.data_ptr())
        if owners is None:
            source: Owner | None = self._sources.get(tensor)
            return source
        return next((owner for owner in owners if owner[0] == running), owners[0])

    def inherit(self, inputs: Iterable[Tensor], outputs: Iterable[Any]) -> None:
        """Remember of which parameter tensors were made, to be able to say so."""
        source = next((owner for t in inputs if (owner := self.of(t))), None)
        if source is not None:
            for tensor in outputs:
                if isinstance(tensor, Tensor):
                    self._sources[tensor] = source
