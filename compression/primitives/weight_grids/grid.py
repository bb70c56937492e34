"""What a family of low-bit numbers does, and a layer's weight that is held on one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class WeightGrid(Protocol):
    """The numbers that the weights of one layer may be; immutable."""

    def project(self, rows: Tensor) -> Tensor:
        """Return the number of the grid that stands for each weight.

        Args:
            rows: `c x n` float32, a row per output channel.

        Returns:
            `c x n` float32, newly allocated.
        """
        ...

    def refit(self, rows: Tensor) -> WeightGrid:
        """Return a grid for weights that moved a little: cheap enough for every training step."""
        ...

    def most_values(self, weights: int) -> int:
        """Return how many distinct numbers a row can take in a layer of so many weights."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldWeight:
    """A layer's weight and the grid it is projected to.

    Attributes:
        grid: Where its numbers lie.
        origin: The float32 weight before it was projected, of the layer's shape.
        zeros: Where the weight was exactly zero and stays so whether or not the grid has a zero;
            None where there was none.
    """

    grid: WeightGrid
    origin: Tensor
    zeros: Tensor | None

    def project(self, weight: Tensor) -> Tensor:
        """Return the weight that is computed with instead of `weight`, of the same shape."""
        rows = weight.detach().reshape(weight.shape[0], -1)
        found = self.grid.project(rows).reshape(weight.shape)
        return found if self.zeros is None else found.masked_fill(self.zeros, 0.0)

    def refit(self, weight: Tensor) -> HeldWeight:
        """Return the same with a grid for a weight that moved a little."""
        rows = weight.detach().reshape(weight.shape[0], -1)
        return dataclasses.replace(self, grid=self.grid.refit(rows))


def zeros_of(weight: Tensor) -> Tensor | None:
    """Return where a weight is exactly zero, or None where it is nowhere."""
    zeros = weight.detach() == 0
    return zeros if bool(torch.any(zeros)) else None


def tensors_of(grid: WeightGrid) -> dict[str, Tensor]:
    """Return the numbers of a grid by dotted names; a grid inside a grid has its own."""
    found: dict[str, Tensor] = {}
    for name, value in _fields(grid):
        if isinstance(value, Tensor):
            found[name] = value
        elif dataclasses.is_dataclass(value):
            inner = tensors_of(value)  # type: ignore[arg-type]
            found |= {f"{name}.{key}": tensor for key, tensor in inner.items()}
    return found


def with_tensors(grid: WeightGrid, tensors: Mapping[str, Tensor]) -> WeightGrid:
    """Return a grid of the same kind with the numbers that `tensors_of` gave."""
    made = copy.copy(grid)
    for name, value in _fields(grid):
        if isinstance(value, Tensor):
            # Grids are frozen; the copy is not handed out yet.
            object.__setattr__(made, name, tensors[name].clone())
        elif dataclasses.is_dataclass(value):
            start = f"{name}."
            inner = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
            object.__setattr__(made, name, with_tensors(value, inner))  # type: ignore[arg-type]
    return made


def _fields(grid: object) -> list[tuple[str, object]]:
    return [(f.name, getattr(grid, f.name)) for f in dataclasses.fields(grid)]  # type: ignore[arg-type]
