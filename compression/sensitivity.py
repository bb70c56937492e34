"""How much each single decision changes what a network says.

Damage is the divergence of the changed network's outputs from the dense ones on unlabelled inputs,
after its BatchNorm statistics were recalibrated: `T^2 KL(softmax(dense/T) || softmax(changed/T))`,
the loss that a recovery by distillation starts from.

Reference:
    Layer-wise sensitivity as in Li et al. (2017), "Pruning Filters for Efficient ConvNets",
    section 3.2, https://arxiv.org/abs/1608.08710, with divergence in place of accuracy: it needs
    no labels and resolves what a few thousand images cannot.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression.apply import ApplyContext, apply
from compression.backend import Backend
from compression.decisions import Decision, DropBlock, decision_from_json, decision_to_json
from compression.plan import Plan
from compression.recover.batchnorm import recalibrate
from compression.recover.losses import distillation_loss

TEMPERATURE = 4.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one decision alone does.

    Attributes:
        site: Where.
        decision: What.
        damage: Divergence of the outputs, >= 0.
        macs: Multiply-adds of the whole model with this decision.
        params: Its parameters.
    """

    site: str
    decision: Decision
    damage: float
    macs: int
    params: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "site": self.site,
            "decision": decision_to_json(self.decision),
            "damage": self.damage,
            "macs": self.macs,
            "params": self.params,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Effect:
        """Rebuild an effect from `to_json`."""
        return Effect(**{**data, "decision": decision_from_json(data["decision"])})


class DamageMeter:
    """Measures what a plan does to a network's outputs before any training."""

    def __init__(
        self,
        context: ApplyContext,
        inputs: Sequence[Tensor],
        backend: Backend,
        statistics: Sequence[Tensor] | None = None,
    ) -> None:
        """Compute the dense model's outputs.

        Args:
            context: Of the dense model.
            inputs: Preprocessed batches `B x C x H x W` on which outputs are compared; 500 to
                1,000 images are enough.
            backend: How to compute forward passes.
            statistics: Batches on which BatchNorm is recalibrated; the inputs where None.
        """
        self.context = context
        self._inputs = inputs
        self._backend = backend
        self._statistics = inputs if statistics is None else statistics
        dense = backend.prepare(copy.deepcopy(context.model)).eval()
        self._wanted = self._outputs(dense)

    def of(self, plan: Plan) -> float:
        """Return the damage of a plan."""
        model = self._backend.prepare(apply(plan, self.context).model)
        recalibrate(model, self._statistics, self._backend)
        loss = distillation_loss(self._outputs(model), self._wanted, TEMPERATURE)
        return max(0.0, float(loss))

    def _outputs(self, model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self._backend.forward(model, batch) for batch in self._inputs])


def profile(
    meter: DamageMeter,
    options: Mapping[str, Sequence[Decision]],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Effect, ...]:
    """Measure every option alone.

    Args:
        meter: Of the dense model.
        options: Decisions to try, by site.
        progress: Called after each option with how many are done and how many there are.
    """
    tries = [(site, decision) for site in options for decision in options[site]]
    effects = []
    for number, (site, decision) in enumerate(tries):
        plan = Plan.of({site: [decision]})
        cost = meter.context.survey.costs.cost(plan)
        effects.append(
            Effect(
                site=site,
                decision=decision,
                damage=meter.of(plan),
                macs=cost.macs,
                params=cost.params,
            )
        )
        progress(number + 1, len(tries))
    return tuple(effects)


def drop_order(meter: DamageMeter, blocks: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `count` blocks in the order in which they are missed least.

    Greedy: the damage of each candidate is measured with all earlier ones dropped, since the
    damages of single blocks do not add up (a network misses the second of two alike blocks more).

    Args:
        meter: Of the dense model.
        blocks: Candidates.
        count: How many to drop at the most.
    """
    gone: list[str] = []
    while len(gone) < min(count, len(blocks)):
        damages = {
            block: meter.of(Plan.of({name: [DropBlock()] for name in (*gone, block)}))
            for block in blocks
            if block not in gone
        }
        gone.append(min(damages, key=lambda block: damages[block]))
    return tuple(gone)
