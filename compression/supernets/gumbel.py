"""Choices that can be learned by gradients: samples of a softmax, relaxed by a temperature.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019,
    equations 3 to 5, https://arxiv.org/abs/1905.09717; Jang et al. (2017), "Categorical
    Reparameterization with Gumbel-Softmax", https://arxiv.org/abs/1611.01144. Sampling without
    replacement by the greatest perturbed logits: Kool et al. (2019), "Stochastic Beams and Where
    to Find Them", section 2.3, https://arxiv.org/abs/1903.06059.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from compression.errors import CompressionError

Cooling = Literal["brief", "linear", "cosine"]
COOLINGS: dict[Cooling, tuple[float, float]] = {
    "brief": (1.0, 0.1),
    "linear": (10.0, 0.1),
    "cosine": (5.0, 0.1),
}
"""First and last temperature: as the paper says (`linear`), as its code does (`cosine`).

Above 1 a sample is close to the mean of all choices. Over tens of thousands of steps enough of
them follow at less; in some hundred steps weights get used to the mean, which tells little of any
single choice. `brief` is for those, and falls along a line, too.
"""


def temperature(cooling: Cooling, step: int, total: int) -> float:
    """Return the temperature of a step, from 0 to `total - 1`; both ends are met exactly."""
    start, end = COOLINGS[cooling]
    place = step / max(1, total - 1)
    share = (1 + math.cos(math.pi * place)) / 2 if cooling == "cosine" else 1 - place
    return end + (start - end) * share


def gumbel_noise(count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` float64 values of -log(-log(u)), always finite."""
    # 1 - u is in (0, 1]; the clamp keeps it from 1, whose image is infinite.
    u = (1 - torch.rand(count, generator=generator, dtype=torch.float64)).clamp(max=1 - 1e-15)
    return -torch.log(-torch.log(u))


def relaxed(logits: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Return softmax((log softmax(logits) + noise) / tau), differentiable in the logits."""
    return torch.softmax((torch.log_softmax(logits, 0) + noise) / tau, 0)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two different choices, or the only one there is.

    Attributes:
        indices: Ascending; two, or one where there is no other.
        weights: Of the same length; they sum to one and carry gradients to the logits.
    """

    indices: tuple[int, ...]
    weights: Tensor


def sample_two(logits: Tensor, tau: float, generator: torch.Generator) -> Pair:
    """Draw two choices without replacement from a relaxed sample, weighed against each other.

    With `p = relaxed(logits, noise, tau)` the indices are drawn from Multinomial(p) and the weights
    are `p[i] / (p[i] + p[j])`. In logarithms throughout: at low temperatures all but one of the
    probabilities vanish, and two are still drawn.

    Args:
        logits: One float64 per choice.
        tau: Temperature, > 0.
        generator: Of all randomness; draws the same numbers whatever the logits are.

    Raises:
        CompressionError: The logits are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise CompressionError(f"Logits of a choice are not finite: {logits.tolist()}")
    perturbed = (torch.log_softmax(logits, 0) + gumbel_noise(len(logits), generator)) / tau
    keys = torch.log_softmax(perturbed.detach(), 0) + gumbel_noise(len(logits), generator)
    drawn = torch.topk(keys, min(2, len(logits))).indices.sort().values
    return Pair(tuple(drawn.tolist()), torch.softmax(perturbed[drawn], 0))


def gap(logits: Tensor) -> float:
    """Return the probability of the first choice minus that of the second; 1 for a single one."""
    if len(logits) < 2:
        return 1.0
    best = torch.softmax(logits.detach(), 0).topk(2).values
    return float(best[0] - best[1])
