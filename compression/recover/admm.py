"""ADMM: training towards any set of weights that has a projection.

Minimise the loss f(W) with W in a set S: alternate steps of the optimizer on
`f(W) + rho/2 ||W - Z + U||^2`, the projection `Z = P_S(W + U)`, and `U += W - Z`.

Reference:
    Boyd et al. (2011), "Distributed Optimization and Statistical Learning via the Alternating
    Direction Method of Multipliers", equations 3.5 to 3.7 and section 3.4.1 (the scaled dual
    variable U is rescaled when rho changes). Zhang et al. (2018), "A Systematic DNN Weight
    Pruning Framework using Alternating Direction Method of Multipliers",
    https://arxiv.org/abs/1804.03294: non-convex S, and rho raised in stages.

Deviations:
    W is not minimised over between two updates of Z and U; it takes `every` steps of the
    optimizer. Nothing is retrained here after the last projection: where S is one of zeros, train
    once more under `KeepMasks` with the masks of what is not zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.recover.hook import Hook
from compression.recover.masks import prefixed, trained_weight, unprefixed
from compression.recover.projections import Projection

STAGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of rho over the training, each for an equal share of its steps."""


class Admm(Hook):
    """Regulariser: pulls the weights of layers towards their sets; in them after training.

    Attributes:
        gap: The greatest `||W - Z|| / ||W||` of a layer before the last, hard projection: how
            much that took away. 0 until then.
    """

    def __init__(
        self,
        projections: Mapping[str, Projection],
        *,
        every: int = 20,
        stages: tuple[float, ...] = STAGES,
    ) -> None:
        if every < 1:
            raise CompressionError(f"every is {every} steps; at least 1 is required")
        if not stages or min(stages) <= 0:
            raise CompressionError(f"Stages of rho are {stages}; numbers > 0 are required")
        self.gap = 0.0
        self._projections = dict(projections)
        self._every = every
        self._stages = stages
        self._rho = stages[0]
        self._total = 0
        self._targets: dict[str, Tensor] = {}
        self._duals: dict[str, Tensor] = {}

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Begin with Z = P(W) and U = 0.

        Raises:
            CompressionError: A layer is missing.
        """
        self._total = total_steps
        for layer, project in self._projections.items():
            weight = trained_weight(model, layer).detach()
            self._targets[layer] = project(weight)
            self._duals[layer] = torch.zeros_like(weight)

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """Return `rho/2 ||W - Z + U||^2`, summed over the layers."""
        rho = self._stages[step * len(self._stages) // max(1, self._total)]
        if rho != self._rho:
            for dual in self._duals.values():
                dual *= self._rho / rho
            self._rho = rho
        terms = [
            (trained_weight(model, layer) - target + self._duals[layer]).square().sum()
            for layer, target in self._targets.items()
        ]
        return rho / 2 * torch.stack(terms).sum() if terms else None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Update Z and U every so many steps."""
        if (step + 1) % self._every:
            return
        for layer, project in self._projections.items():
            weight, dual = trained_weight(model, layer).detach(), self._duals[layer]
            self._targets[layer] = project(weight + dual)
            dual += weight - self._targets[layer]

    def finish(self, model: nn.Module) -> None:
        """Project the weights themselves."""
        with torch.no_grad():
            for layer, project in self._projections.items():
                weight = trained_weight(model, layer)
                nearest = project(weight.detach())
                scale = float(weight.norm())
                if scale:
                    self.gap = max(self.gap, float((weight - nearest).norm()) / scale)
                weight.copy_(nearest)

    def state(self) -> Mapping[str, Tensor]:
        """Return Z, U and the rho that U is scaled by."""
        return {
            **prefixed("target", self._targets),
            **prefixed("dual", self._duals),
            "rho": torch.tensor(self._rho, dtype=torch.float64),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take all of it over."""
        self._targets = unprefixed("target", state)
        self._duals = unprefixed("dual", state)
        self._rho = float(state["rho"])
