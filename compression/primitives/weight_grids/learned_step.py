"""LSQ: one step per layer that is trained together with the weights.

Reference:
    Esser et al. (2020), "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153.
    Equations 1-2: `clip(w / s, -Q_N, Q_P)` rounded, times s, with Q_N = 2^(b-1) and
    Q_P = 2^(b-1) - 1. Equation 3: the gradient of the step. Equation 5: that of the weight passes
    inside the clip. Section 2.2: the step's gradient is scaled by 1 / sqrt(n Q_P).

Deviations:
    The step starts at the least squared error, not at 2 mean|w| / sqrt(Q_P).
"""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from compression.primitives.weight_grids.uniform import best_steps
from compression.primitives.weight_layers import half

LEAST_STEP = 2.0**-24
"""The least float16 above zero: training may not turn the grid over."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LearnedStepGrid:
    """Integers from -Q_N to Q_P times the step.

    Attributes:
        step: Scalar float32, as it is trained; the grid's is its float16.
        below: Q_N.
        above: Q_P.
    """

    step: Tensor
    below: int
    above: int

    def project(self, rows: Tensor) -> Tensor:
        """Return the nearest level of every weight."""
        step = self.rounded_step()
        return (rows / step).round().clamp(-self.below, self.above) * step

    def refit(self, rows: Tensor) -> LearnedStepGrid:
        """Return itself: the step is trained, not fitted."""
        return self

    def most_values(self, weights: int) -> int:
        """Return the number of levels."""
        return self.below + self.above + 1

    def rounded_step(self) -> Tensor:
        """Return the step that is computed with."""
        return half(self.step.detach()).clamp(min=LEAST_STEP)

    def gradients(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the step and of the weights.

        Args:
            rows: The float weights, `c x n`.
            gradient: Of the loss in the projected weights, `c x n`.

        Returns:
            The scaled gradient of the step (scalar), and that of the weights: `gradient` inside
            the clip, zero outside.
        """
        scaled = rows / self.rounded_step()
        inside = (scaled > -self.below) & (scaled < self.above)
        slope = scaled.clamp(-self.below, self.above).round()
        slope = slope - scaled.where(inside, scaled.new_zeros(()))
        scale = 1 / math.sqrt(rows.numel() * self.above)
        return (slope * gradient).sum() * scale, gradient * inside


def fit(rows: Tensor, bits: int) -> LearnedStepGrid:
    """Start from the step with the least squared error over the whole layer."""
    above = 2 ** (bits - 1) - 1
    step = best_steps(rows.reshape(1, -1), above).reshape(())
    return LearnedStepGrid(step, above + 1, above)
