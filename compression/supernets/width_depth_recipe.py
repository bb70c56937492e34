"""How a differentiable search of widths and depths is run."""

from __future__ import annotations

import dataclasses
from typing import Any

from compression.errors import CompressionError
from compression.supernets.gumbel import COOLINGS, Cooling
from compression.supernets.width_depth_cost import TOLERANCES, Tolerance
from compression.supernets.width_depth_network import ALIGNMENTS, Alignment


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecipe:
    """Settings of the search; the paper's where no other reason is given.

    Attributes:
        macs: Target R, multiply-adds of one input, > 0.
        steps: Pairs of one step on the weights and one on the choices, at least 1.
        cost_weight: lambda, factor of the cost loss, at least 0.
        tolerance: `both` (the paper) or `below` (its code): `width_depth_cost.cost_loss`.
        tolerated: t, share of the target (of the whole network with `below`), in [0, 1).
        cooling: Of the temperature: `brief`, `linear` (the paper) or `cosine` (its code).
        warm_up: Share of the steps, the first ones, in which only weights move, in [0, 1). The
            paper has none: weights that never met a width or a depth tell little of it.
        learning_rate: Of SGD on the weights, falling to zero along a cosine. Weights are trained
            already, so that a fifth of the paper's does.
        weight_decay: Of convolutions and linear layers.
        momentum: With Nesterov's correction.
        choice_rate: Learning rate of Adam on the logits. The paper's 0.001 is for 60,000 steps;
            some hundred need that much more.
        choice_decay: Weight decay of the logits.
        batch_size: Images of each of the two steps, at least 2.
        distill_weight: Share of the distillation loss in the steps on the weights, in [0, 1];
            read where there is a teacher. Without labels it is 1 everywhere.
        temperature: Of the distillation.
        augment: Random crop and flip.
        alignment: How two widths are brought together: `zeros` or `interpolate` (the paper).
    """

    macs: float
    steps: int = 400
    cost_weight: float = 2.0
    tolerance: Tolerance = "both"
    tolerated: float = 0.05
    cooling: Cooling = "brief"
    warm_up: float = 0.25
    learning_rate: float = 0.02
    weight_decay: float = 5e-4
    momentum: float = 0.9
    choice_rate: float = 0.1
    choice_decay: float = 1e-3
    batch_size: int = 128
    distill_weight: float = 0.9
    temperature: float = 4.0
    augment: bool = True
    alignment: Alignment = "zeros"

    def __post_init__(self) -> None:
        limits = {
            "macs": (self.macs > 0, "greater than 0"),
            "steps": (self.steps >= 1, "at least 1"),
            "cost_weight": (self.cost_weight >= 0, "at least 0"),
            "tolerance": (self.tolerance in TOLERANCES, f"one of {TOLERANCES}"),
            "tolerated": (0 <= self.tolerated < 1, "in [0, 1)"),
            "cooling": (self.cooling in COOLINGS, f"one of {tuple(COOLINGS)}"),
            "warm_up": (0 <= self.warm_up < 1, "in [0, 1)"),
            "learning_rate": (self.learning_rate > 0, "greater than 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "momentum": (0 < self.momentum < 1, "in (0, 1)"),
            "choice_rate": (self.choice_rate > 0, "greater than 0"),
            "choice_decay": (self.choice_decay >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "distill_weight": (0 <= self.distill_weight <= 1, "in [0, 1]"),
            "temperature": (self.temperature > 0, "greater than 0"),
            "alignment": (self.alignment in ALIGNMENTS, f"one of {ALIGNMENTS}"),
        }
        for name, (holds, limit) in limits.items():
            if not holds:
                raise CompressionError(
                    f"Search recipe's {name} is {getattr(self, name)}; it must be {limit}"
                )

    def terms(self) -> dict[str, Any]:
        """Return the settings as JSON data."""
        return dataclasses.asdict(self)
