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
    Where sets overlap (the filters of one coupling are the columns of another), each has its own
    Z and U, and W is pulled towards all of them, as in the consensus form (Boyd et al., section
    7.1); the last projection goes from set to set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compression.coupling import Coupling
from compression.errors import CompressionError
from compression.recover.hook import Hook
from compression.recover.masks import prefixed, trained_weight, unprefixed
from compression.recover.projections import JointProjection, Projection, largest_channels

STAGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of rho over the training, each for an equal share of its steps."""


class Admm(Hook):
    """Regulariser: pulls the weights of layers towards their sets; in them after training.

    Attributes:
        gap: The greatest `||W - Z|| / ||W||` of a set before the last, hard projection: how
            much that took away. 0 until then.
    """

    def __init__(
        self,
        projections: Mapping[str, Projection],
        *,
        joint: Mapping[str, tuple[Sequence[str], JointProjection]] | None = None,
        every: int = 20,
        stages: tuple[float, ...] = STAGES,
    ) -> None:
        """Name the sets.

        Args:
            projections: By layer, onto a set of its weight alone.
            joint: By any other name, layers and the projection of all their weights together;
                sets may overlap.
            every: Steps between two updates of Z and U.
            stages: Values of rho.

        Raises:
            CompressionError: A number is out of its range.
        """
        if every < 1:
            raise CompressionError(f"every is {every} steps; at least 1 is required")
        if not stages or min(stages) <= 0:
            raise CompressionError(f"Stages of rho are {stages}; numbers > 0 are required")
        self.gap = 0.0
        # Names of pairs of set and layer in the state; a layer's own set has the layer's name.
        self._sets: list[tuple[dict[str, str], JointProjection]] = [
            ({layer: layer}, _alone(layer, project)) for layer, project in projections.items()
        ]
        for name, (layers, project) in (joint or {}).items():
            self._sets.append(({layer: f"{name}:{layer}" for layer in layers}, project))
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
        for names, project in self._sets:
            weights = {layer: trained_weight(model, layer).detach() for layer in names}
            for layer, target in project(weights).items():
                self._targets[names[layer]] = target
                self._duals[names[layer]] = torch.zeros_like(target)

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """Return `rho/2 ||W - Z + U||^2`, summed over the sets."""
        rho = self._stages[step * len(self._stages) // max(1, self._total)]
        if rho != self._rho:
            for dual in self._duals.values():
                dual *= self._rho / rho
            self._rho = rho
        terms = [
            (trained_weight(model, layer) - self._targets[name] + self._duals[name]).square().sum()
            for names, _ in self._sets
            for layer, name in names.items()
        ]
        return rho / 2 * torch.stack(terms).sum() if terms else None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Update Z and U every so many steps."""
        if (step + 1) % self._every:
            return
        for names, project in self._sets:
            weights = {layer: trained_weight(model, layer).detach() for layer in names}
            targets = project(
                {layer: weights[layer] + self._duals[names[layer]] for layer in names}
            )
            for layer, target in targets.items():
                self._targets[names[layer]] = target
                self._duals[names[layer]] += weights[layer] - target

    def finish(self, model: nn.Module) -> None:
        """Project the weights themselves, set by set."""
        with torch.no_grad():
            for names, project in self._sets:
                weights = {layer: trained_weight(model, layer) for layer in names}
                before = {layer: weight.detach().clone() for layer, weight in weights.items()}
                nearest = project(before)
                size = _norm(before.values())
                if size:
                    moved = _norm(before[layer] - nearest[layer] for layer in names)
                    self.gap = max(self.gap, moved / size)
                for layer, weight in weights.items():
                    weight.copy_(nearest[layer])

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


def _alone(layer: str, project: Projection) -> JointProjection:
    return lambda weights: {layer: project(weights[layer])}


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def channel_sets(
    model: nn.Module, couplings: Sequence[Coupling], keep_channels: Mapping[str, int]
) -> dict[str, tuple[tuple[str, ...], JointProjection]]:
    """Return the joint sets of `Admm` that hold at most so many nonzero channels per coupling.

    Layers that the model lacks (of dropped blocks) are left out, and so are couplings that keep
    all their channels or have no weight of two axes.

    Args:
        model: That is to be trained.
        couplings: Of the model, or of the one that it came from by dropping blocks.
        keep_channels: By coupling, channels that may be nonzero.
    """
    modules = dict(model.named_modules())
    sets = {}
    for coupling in couplings:
        kept = keep_channels.get(coupling.name, coupling.channels)
        layers = tuple(
            dict.fromkeys(
                tap.layer
                for tap in coupling.taps
                if isinstance(modules.get(tap.layer), _ConvNd | nn.Linear)
            )
        )
        if layers and kept < coupling.channels:
            sets[coupling.name] = (layers, largest_channels(coupling, kept))
    return sets
