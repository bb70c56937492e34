"""What a plan is applied to when its weights come from a supernet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import nn

from compression.apply import ApplyContext
from compression.catalogue import SELECTORS
from compression.coupling import Coupling, Indices
from compression.plan import Plan
from compression.primitives.rankings import Rankings
from compression.supernets.supernet import Supernet


class FixedOrder(Rankings):
    """The order that a supernet was trained in, whichever selector a plan names."""

    def __init__(self, couplings: Mapping[str, Coupling], order: Mapping[str, Indices]) -> None:
        super().__init__(couplings, SELECTORS)
        self._order = order

    def order(self, model: nn.Module, selector: str) -> Mapping[str, Indices]:
        """Return the channels of every site, the last to go first."""
        del model, selector
        return self._order


def context_for(plan: Plan, supernet: Supernet, context: ApplyContext) -> ApplyContext:
    """Return the context in which `apply` crops the supernet's weights for a plan.

    Args:
        plan: Whose widths the weights are for.
        supernet: Trained.
        context: Of the dense model that the supernet was made of.

    Raises:
        PlanInvalid: The plan prunes an unknown site or keeps more channels than there are.
    """
    model = supernet.full_size(supernet.choices.of_plan(plan))
    rankings = FixedOrder(context.module.rankings.couplings, supernet.order)
    module = dataclasses.replace(context.module, dense=model, rankings=rankings)
    return dataclasses.replace(context, model=model, module=module)
