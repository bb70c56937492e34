"""What each channel contributes to the outputs of the layers that consume it.

Where channel `c` enters a consumer, its contribution to one output is `z_c`, and the output is
the sum of all of them. Removing a set `T` of channels therefore changes the output by exactly
`-sum of z_c over T`, and the squared change, summed over samples, is `1_T' G 1_T` with the Gram
matrix `G[c, d] = sum of z_c z_d`. So one `C x C` matrix per coupling is all that reconstruction
criteria (`thinet`, `lasso`) need.

Samples are one output of one filter at one position (Luo et al., 2017, section 3.2.1). Each
contribution is taken without its mean over the samples: a constant shift of a layer's outputs is
what BatchNorm's recalibration, or a bias, takes back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compression.coupling import Coupling, Tap
from compression.selectors.selector import Evidence
from compression.selectors.windows import (
    consumers,
    draw_positions,
    filters,
    layer_generator,
    observe,
    windows,
)

POSITIONS_PER_IMAGE = 10
MOST_FILTERS = 64
"""Filters of a consumer that are sampled: where it has more, a random choice stands for all."""

_MOST_VALUES = 1 << 25
"""Contributions held at a time: 128 MB."""


@dataclasses.dataclass(slots=True)
class _Moments:
    """Sums over samples of one consumer's contributions.

    Attributes:
        tap: The consumer's input side.
        chosen: Sampled filters.
        gram: `C x C`, of products.
        sums: `C x o`, of contributions by sampled filter.
        shift: `C x 1 x o`, taken from every contribution: their first mean, so that a large
            constant costs no precision; None before the first window.
        rows: Number of windows.
    """

    tap: Tap
    chosen: Tensor
    gram: Tensor
    sums: Tensor
    shift: Tensor | None = None
    rows: int = 0

    def add(self, weight: Tensor, seen: Tensor) -> None:
        """Add windows: `n x in x k`; `weight` is the consumer's, `out x in x k`."""
        index = torch.from_numpy(self.tap.index)
        own = weight[self.chosen][:, index].flatten(2).permute(1, 2, 0)  # C x (m k) x o
        at_once = max(1, _MOST_VALUES // (own.shape[0] * max(own.shape[1:])))
        for part in torch.split(seen, at_once):
            z = torch.bmm(part[:, index].flatten(2).transpose(0, 1), own)  # C x n x o
            if self.shift is None:
                self.shift = z.mean(1, keepdim=True)
            z -= self.shift
            self.sums += z.sum(1, dtype=torch.float64)
            flat = z.flatten(1)
            self.gram += (flat @ flat.T).double()
        self.rows += len(seen)

    def covariance(self) -> Tensor:
        """Return the Gram matrix of contributions less their means, divided by its trace."""
        centred = self.gram - self.sums @ self.sums.T / max(1, self.rows)
        total = centred.trace()
        return centred / total if total > 0 else torch.zeros_like(centred)


def gram_matrices(
    model: nn.Module, couplings: Sequence[Coupling], evidence: Evidence, selector: str
) -> Mapping[str, NDArray[np.float64]]:
    """Return the `C x C` Gram matrix of the contributions of every coupling that has consumers.

    Where a coupling has several consumers their matrices are added, each divided by its trace:
    errors count relative to what the channels give to that consumer.

    Raises:
        PlanInvalid: There are no calibration inputs.
    """
    inputs = evidence.inputs(selector)
    taps = consumers(model, couplings)
    moments: dict[str, list[_Moments]] = {}
    generators = {
        tap.layer: layer_generator(evidence.seed, tap.layer)
        for found in taps.values()
        for tap in found
    }
    by_coupling: dict[str, list[_Moments]] = {}
    for coupling in couplings:
        for tap in taps[coupling.name]:
            weight = filters(model.get_submodule(tap.layer))
            order = torch.randperm(len(weight), generator=generators[tap.layer])
            chosen = order[:MOST_FILTERS].sort().values
            one = _Moments(
                tap=tap,
                chosen=chosen,
                gram=torch.zeros(coupling.channels, coupling.channels, dtype=torch.float64),
                sums=torch.zeros(coupling.channels, len(chosen), dtype=torch.float64),
            )
            moments.setdefault(tap.layer, []).append(one)
            by_coupling.setdefault(coupling.name, []).append(one)

    def visit(name: str, module: nn.Module, x: Tensor) -> None:
        positions = draw_positions(module, x, POSITIONS_PER_IMAGE, generators[name])
        seen = windows(module, x, positions)
        for one in moments[name]:
            one.add(filters(module), seen)

    observe(model, moments, inputs, visit)
    return {
        name: torch.stack([one.covariance() for one in found]).sum(0).numpy()
        for name, found in by_coupling.items()
        if any(one.rows for one in found)
    }
