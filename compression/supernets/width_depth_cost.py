"""What a network of undecided widths and depths is expected to cost, and how far off that is.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019,
    equations 6 to 8, https://arxiv.org/abs/1905.09717, and the authors' code.

Deviations:
    The estimate reads the width that a stage really hands on, also where its last blocks are
    skipped; the authors' code takes the skipped block's. It is exact for a decided network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from compression.cost import CostTable
from compression.errors import CompressionError
from compression.layer_cost import WEIGHTED, Tie
from compression.supernets.width_depth_choices import DepthChoice

Tolerance = Literal["both", "below"]
TOLERANCES: tuple[Tolerance, ...] = ("both", "below")


class ExpectedMacs:
    """Multiply-adds of one input as a function of expected widths and of depths' probabilities.

    A layer is expected to cost `kernel x positions x E[in] E[out] / groups`, times the probability
    that its block is there: widths are independent of each other and of depths.
    """

    def __init__(self, costs: CostTable, depths: Sequence[DepthChoice]) -> None:
        """Take the layers that multiply, and the blocks that may be skipped."""
        self._channels = costs.site_channels
        self._rows = [row for row in costs.layers if row.op in WEIGHTED and row.positions]
        self._depths = tuple(depths)

    def __call__(
        self, widths: Mapping[str, Tensor], depth_probabilities: Sequence[Tensor]
    ) -> Tensor:
        """Return the expected MACs, a float64 scalar with gradients.

        Args:
            widths: Expected channels by site, scalars; sites that are missing are whole.
            depth_probabilities: For each depth choice one probability per candidate.
        """
        alive: dict[str, Tensor] = {}
        for choice, probabilities in zip(self._depths, depth_probabilities, strict=True):
            for place, block in enumerate(choice.blocks):
                deep = [p for p, keep in enumerate(choice.candidates) if keep > place]
                alive[f"{block}."] = probabilities[deep].sum()
        total = torch.zeros((), dtype=torch.float64)
        for row in self._rows:
            depthwise = row.groups > 1 and row.groups == row.in_channels
            out = self._expected(row.out_channels, row.out_ties, widths)
            fan_in: Tensor | float = 1.0
            if not depthwise:
                fan_in = self._expected(row.in_channels, row.in_ties, widths) / row.groups
            macs = row.kernel * row.positions * fan_in * out
            for start, probability in alive.items():
                if row.name.startswith(start):
                    macs = macs * probability
            total = total + macs
        return total

    def _expected(
        self, channels: int, ties: Sequence[Tie], widths: Mapping[str, Tensor]
    ) -> Tensor | float:
        expected: Tensor | float = float(channels)
        for site, multiple in ties:
            if site in widths:
                expected = expected - multiple * (self._channels[site] - widths[site])
        return expected


def cost_loss(
    expected: Tensor, macs: float, target: float, *, largest: float, tolerance: Tolerance, t: float
) -> Tensor:
    """Return log E where the network is too large, -log E where it is too small, else 0.

    Args:
        expected: E, the expected MACs, with gradients. The gradient of its logarithm does not
            depend on units.
        macs: F, those of the network of the most probable choices.
        target: R.
        largest: MACs of the whole network, F_max.
        tolerance: `both`: nothing between (1 - t) R and (1 + t) R, the paper's. `below`: nothing
            between R - t F_max and R, the code's.
        t: The tolerance, in [0, 1).

    Raises:
        CompressionError: The tolerance has no such name.
    """
    match tolerance:
        case "both":
            low, high = (1 - t) * target, (1 + t) * target
        case "below":
            low, high = target - t * largest, target
        case _:
            raise CompressionError(
                f"Tolerance is {tolerance!r}; choose from {', '.join(TOLERANCES)}"
            )
    if macs > high:
        return torch.log(expected)
    if macs < low:
        return -torch.log(expected)
    return torch.zeros((), dtype=expected.dtype)
