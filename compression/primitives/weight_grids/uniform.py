"""Evenly spaced levels, symmetric about zero: k * step with |k| <= 2^(bits-1) - 1.

One step per output channel, the one with the least squared error: the best of a list of clips,
then least squares for fixed codes, `step = <w, k> / <k, k>`, alternated with rounding (both
lower the error, as in Lloyd's algorithm).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from compression.primitives.weight_layers import half

CLIPS = tuple(i / 32 for i in range(3, 33))
"""Shares of the greatest magnitude that are tried as the greatest level."""

ALTERNATIONS = 4


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class UniformGrid:
    """Integers times a step.

    Attributes:
        step: `c x 1` or `1 x 1` float32, float16 numbers, > 0.
        most: Greatest integer.
    """

    step: Tensor
    most: int

    def project(self, rows: Tensor) -> Tensor:
        """Return the nearest level of every weight."""
        return codes(rows, self.step, self.most) * self.step

    def refit(self, rows: Tensor) -> UniformGrid:
        """Return the grid whose steps are best for the present codes."""
        return UniformGrid(_least_squares(rows, self.step, self.most), self.most)

    def most_values(self, weights: int) -> int:
        """Return the number of levels."""
        return 2 * self.most + 1


def fit(rows: Tensor, bits: int) -> UniformGrid:
    """Fit one step per row.

    Args:
        rows: `c x n` float32.
        bits: At least 2.
    """
    most = 2 ** (bits - 1) - 1
    return UniformGrid(best_steps(rows, most), most)


def best_steps(rows: Tensor, most: int) -> Tensor:
    """Return the step of each row with the least squared error found, `c x 1`."""
    greatest = rows.abs().amax(1, keepdim=True)
    best = _positive(greatest / most)
    error = (rows - codes(rows, best, most) * best).square().sum(1, keepdim=True)
    for clip in CLIPS[:-1]:
        step = _positive(greatest * (clip / most))
        found = (rows - codes(rows, step, most) * step).square().sum(1, keepdim=True)
        best = torch.where(found < error, step, best)
        error = torch.minimum(found, error)
    for _ in range(ALTERNATIONS):
        best = _least_squares(rows, best, most)
    return best


def codes(rows: Tensor, step: Tensor, most: int) -> Tensor:
    """Return the integer that stands for each weight, as float32."""
    return (rows / step).round().clamp(-most, most)


def _least_squares(rows: Tensor, step: Tensor, most: int) -> Tensor:
    """Return `<w, k> / <k, k>` of each row of steps; the former step where all codes are zero."""
    k = codes(rows, step, most)
    axes = (0, 1) if len(step) == 1 else (1,)
    above = (rows * k).sum(axes, keepdim=True)
    below = k.square().sum(axes, keepdim=True)
    return torch.where(below > 0, _positive(above / below.clamp(min=1)), step)


def _positive(step: Tensor) -> Tensor:
    """Return the nearest float16 that is no zero: a row of zeros needs some step too."""
    return half(step).clamp(min=2.0**-24)
