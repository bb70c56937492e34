"""Training with low-bit weights by the straight-through estimator.

Reference:
    Courbariaux et al. (2015), "BinaryConnect", https://arxiv.org/abs/1511.00363, algorithm 1: the
    network computes with projected weights, and their gradient moves the float ones behind them.
    Esser et al. (2020), "Learned Step Size Quantization": see `compression.primitives.
    weight_grids.learned_step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.primitives.weight_grids.grid import HeldWeight, tensors_of, with_tensors
from compression.primitives.weight_grids.learned_step import LEAST_STEP, LearnedStepGrid
from compression.primitives.weight_layers import weight_layer
from compression.recover.hook import Hook
from compression.recover.masks import prefixed, unprefixed

STEP_NAME = "weight_step"
"""Parameter that a layer with a learned step has while it is trained, so that the optimizer
trains it."""


class HoldGrid(Hook):
    """Keeps weights on their grids; float weights behind them learn.

    The projected weights are in the model at every forward pass, evaluation included. Between
    `gradients` and `after_step` the float weights take their place, so that momentum, weight
    decay and other hooks act on them. Grids follow the weights (`WeightGrid.refit`).

    Args:
        layers: By the layer's dotted path.
    """

    def __init__(self, layers: Mapping[str, HeldWeight]) -> None:
        self._held = dict(layers)
        self._floats: dict[str, Tensor] = {}

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Take the float weights from before the projection, where the model holds its result."""
        with torch.no_grad():
            for name, held in self._held.items():
                layer = weight_layer(model, name)
                untouched = torch.equal(held.project(held.origin), layer.weight)
                source = held.origin if untouched else layer.weight
                self._floats[name] = torch.empty_like(layer.weight).copy_(source)
                layer.weight.copy_(held.project(self._floats[name]))
                if isinstance(held.grid, LearnedStepGrid):
                    layer.register_parameter(STEP_NAME, nn.Parameter(held.grid.step.clone()))

    def gradients(self, model: nn.Module, step: int) -> None:
        """Put the float weights in place, with the gradient of the projected ones."""
        with torch.no_grad():
            for name, held in self._held.items():
                layer = weight_layer(model, name)
                layer.weight.copy_(self._floats[name])
                gradient = layer.weight.grad
                if gradient is not None and isinstance(held.grid, LearnedStepGrid):
                    rows = self._floats[name].reshape(layer.weight.shape[0], -1)
                    of_step, of_rows = held.grid.gradients(rows, gradient.reshape(rows.shape))
                    gradient.copy_(of_rows.reshape(gradient.shape))
                    layer.get_parameter(STEP_NAME).grad = of_step

    def after_step(self, model: nn.Module, step: int) -> None:
        """Keep the moved float weights and put their projection in place."""
        with torch.no_grad():
            for name, held in self._held.items():
                layer = weight_layer(model, name)
                if held.zeros is not None:
                    layer.weight.masked_fill_(held.zeros, 0.0)
                self._floats[name].copy_(layer.weight)
                if isinstance(held.grid, LearnedStepGrid):
                    learned = layer.get_parameter(STEP_NAME).clamp_(min=LEAST_STEP)
                    grid = dataclasses.replace(held.grid, step=learned.detach().clone())
                    held = dataclasses.replace(held, grid=grid)
                else:
                    held = held.refit(layer.weight)
                self._held[name] = held
                layer.weight.copy_(held.project(layer.weight))

    def finish(self, model: nn.Module) -> None:
        """Leave the projected weights and take the steps out again."""
        with torch.no_grad():
            for name, held in self._held.items():
                layer = weight_layer(model, name)
                layer.weight.copy_(held.project(self._floats[name]))
                if isinstance(held.grid, LearnedStepGrid):
                    delattr(layer, STEP_NAME)

    def state(self) -> Mapping[str, Tensor]:
        """Return the float weights and the numbers of the grids."""
        found = prefixed("float", self._floats)
        for name, held in self._held.items():
            found |= prefixed(f"grid.{name}", tensors_of(held.grid))
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with those."""
        for name, tensor in unprefixed("float", state).items():
            self._floats[name].copy_(tensor)
        for name, held in self._held.items():
            grid = with_tensors(held.grid, unprefixed(f"grid.{name}", state))
            self._held[name] = dataclasses.replace(held, grid=grid)
