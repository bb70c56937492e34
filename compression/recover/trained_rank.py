"""Training towards low rank, so that the factorization that follows loses almost nothing.

Reference:
    Xu et al. (2020), "TRP: Trained Rank Pruning for Efficient Deep Neural Networks",
    https://arxiv.org/abs/2004.14566, algorithm 1 and equation 6 (nuclear-norm sub-gradient).

Deviations:
    Weights are truncated to the ranks that the plan names, not by an energy threshold. The
    sub-gradient's singular vectors are those of the last truncation, at most `every` steps old:
    a decomposition at each step would cost more than the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.decisions import Factorize
from compression.errors import PlanInvalid
from compression.factors import ranks
from compression.primitives.split_layers import Splittable, weight_of, window
from compression.recover.hook import Hook

METHODS = ("svd", "channel", "spatial")
"""Methods whose factors are those of one matrix."""


class TrainedRank(Hook):
    """Truncates layers to their planned rank every few steps; they stay ordinary layers.

    At the end their weights have that rank exactly, and `factorize` with the same decisions is
    near lossless.
    """

    def __init__(
        self, layers: Mapping[str, Factorize], every: int = 20, nuclear: float = 3e-4
    ) -> None:
        """Take the plan.

        Args:
            layers: What will be decided for each layer, by dotted name.
            every: Steps between two truncations.
            nuclear: Weight of the nuclear norm's sub-gradient; 0 leaves it out.

        Raises:
            PlanInvalid: A method has no matrix, or `every` or `nuclear` is out of range.
        """
        if every < 1 or nuclear < 0:
            raise PlanInvalid(
                f"trained rank: every is {every} and nuclear {nuclear:g}; "
                "at least 1 and 0 are required"
            )
        for name, decision in layers.items():
            if decision.method not in METHODS:
                raise PlanInvalid(
                    f"Layer {name!r}: trained rank knows {', '.join(METHODS)}, "
                    f"not {decision.method}"
                )
        self._layers = dict(sorted(layers.items()))
        self._every = every
        self._nuclear = nuclear
        self._directions: dict[str, Tensor] = {}

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Find the singular vectors of the weights as they are.

        Raises:
            PlanInvalid: A name is no ungrouped convolution or linear layer.
        """
        for name, decision in self._layers.items():
            self._directions[name] = _low_rank(_layer(model, name), decision)[1]

    def gradients(self, model: nn.Module, step: int) -> None:
        """Add the sub-gradient U V^T of the nuclear norm to the weights' gradients."""
        if not self._nuclear:
            return
        for name, direction in self._directions.items():
            gradient = _layer(model, name).weight.grad
            if gradient is not None:
                gradient.add_(direction, alpha=self._nuclear)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Truncate after every `every`-th step."""
        if (step + 1) % self._every == 0:
            self._truncate(model)

    def finish(self, model: nn.Module) -> None:
        """Leave weights of exactly the planned ranks."""
        self._truncate(model)

    def _truncate(self, model: nn.Module) -> None:
        for name, decision in self._layers.items():
            layer = _layer(model, name)
            truncated, self._directions[name] = _low_rank(layer, decision)
            with torch.no_grad():
                layer.weight.copy_(truncated)


def _layer(model: nn.Module, name: str) -> Splittable:
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise PlanInvalid(f"Layer {name!r} is not in the model; its rank cannot be set") from error
    if type(layer) not in (nn.Conv2d, nn.Linear) or getattr(layer, "groups", 1) != 1:
        raise PlanInvalid(f"Layer {name!r} is no plain convolution or linear layer without groups")
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _low_rank(layer: Splittable, decision: Factorize) -> tuple[Tensor, Tensor]:
    """Return the weight truncated to its planned rank, and U V^T of what remained."""
    # float64: the rank must be exact to the last bits of the float32 weight.
    weight = weight_of(layer).double()
    n_out, n_in, kh, kw = weight.shape
    (rank,) = ranks(decision, n_in, n_out, window(layer))
    spatial = decision.method == "spatial"
    matrix = weight.permute(0, 3, 1, 2).reshape(n_out * kw, -1) if spatial else weight.flatten(1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]

    def back(made: Tensor) -> Tensor:
        if spatial:
            made = made.reshape(n_out, kw, n_in, kh).permute(0, 2, 3, 1)
        return made.reshape(layer.weight.shape).to(layer.weight.dtype)

    return back((u * s) @ vt), back(u @ vt)
