"""Averages of the weights over the course of a training.

Reference:
    Polyak & Juditsky (1992), "Acceleration of Stochastic Approximation by Averaging": the mean of
    the last iterates.
    Izmailov et al. (2018), "Averaging Weights Leads to Wider Optima and Better Generalization",
    section 3.2, https://arxiv.org/abs/1803.05407: BatchNorm statistics must be computed anew.

Deviations:
    The exponential average forgets faster at first, by the decay `min(d, (1 + k) / (10 + k))`
    after step k, so that it does not remember the weights before the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Average = Literal["none", "ema", "tail"]

AVERAGES: tuple[Average, ...] = ("none", "ema", "tail")


class WeightAverage:
    """A running average of all parameters; buffers, such as BatchNorm statistics, are left out.

    Attributes:
        count: Steps averaged so far.
    """

    def __init__(self, kind: Average, *, decay: float, first_step: int) -> None:
        """Choose the average.

        Args:
            kind: `ema`: exponential moving average from the first step; `tail`: the mean of the
                weights after every step from `first_step` on; `none`: nothing is averaged.
            decay: Of `ema`, in (0, 1).
            first_step: Of `tail`, counted from 0.
        """
        self.count = 0
        self._kind = kind
        self._decay = decay
        self._first_step = first_step if kind == "tail" else 0
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step (from 0)."""
        if self._kind == "none" or step < self._first_step:
            return
        share = 1 / (self.count + 1)
        if self._kind == "ema":
            share = 1 - min(self._decay, (1 + self.count) / (10 + self.count))
        for name, parameter in model.named_parameters():
            if self.count:
                self._means[name].lerp_(parameter, share)
            else:
                self._means[name] = parameter.detach().clone()
        self.count += 1

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        """Give the model the averaged weights; nothing changes where there is no average."""
        for name, parameter in model.named_parameters():
            if name in self._means:
                parameter.copy_(self._means[name])

    def state(self) -> dict[str, Tensor]:
        """Return what `load_state` continues from."""
        return {
            "count": torch.tensor(self.count),
            **{f"mean.{k}": v for k, v in self._means.items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.count = int(state["count"])
        means = {k.removeprefix("mean."): v for k, v in state.items() if k.startswith("mean.")}
        self._means = {name: mean.clone() for name, mean in means.items()}
