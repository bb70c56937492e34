"""The one door: a plan goes in, a compressed module comes out.

Order of application: channels are removed here; precision is decided last, on the exported
graph, because integer arithmetic exists only in the runtime (`compression.primitives.quantize`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from compression.catalogue import SELECTORS
from compression.cost import PlanCost
from compression.errors import PlanInvalid
from compression.graph import trace
from compression.patch import Patch
from compression.plan import Plan
from compression.primitives.prune_channels import ChannelPruning, PruningContext, Rankings
from compression.selectors.selector import Batch
from compression.surgery import Cut
from compression.surveyed import Survey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Applied:
    """A compressed module and how it came about.

    Attributes:
        model: Fresh module in eval mode; shares no storage with the dense one.
        patch: Kept channels by site; `replay` makes the same module of it.
        cuts: What stayed of every layer that lost something, for the certificate.
        cost: What the cost table says the plan costs.
    """

    model: nn.Module
    patch: Patch
    cuts: Mapping[str, Cut]
    cost: PlanCost


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ApplyContext:
    """What a warm worker keeps of a model, so that applying a plan is slicing alone.

    Attributes:
        model: The dense model, in eval mode; never changed.
        survey: Its survey.
        pruning: Coupled layers and channel rankings, each ranked once.
    """

    model: nn.Module
    survey: Survey
    pruning: PruningContext

    @staticmethod
    def build(
        model: nn.Module,
        survey: Survey,
        input_shape: tuple[int, int, int],
        batches: Sequence[Batch] | None = None,
    ) -> ApplyContext:
        """Trace `model` once and match it with its survey.

        Args:
            model: The dense model; a copy of it is kept.
            survey: Made of this model.
            input_shape: C, H, W of one input.
            batches: Labelled batches, for selectors that need gradients.

        Raises:
            PlanInvalid: The survey is of another model.
        """
        model = copy.deepcopy(model).eval()
        found = {coupling.name: coupling for coupling in trace(model, input_shape)}
        couplings = {}
        for site in survey.prunable():
            coupling = found.get(site.name)
            if coupling is None or coupling.channels != site.channels:
                raise PlanInvalid(
                    f"Site {site.name!r} with {site.channels} channels is not in this model; "
                    "the survey is of another one"
                )
            couplings[site.name] = coupling
        rankings = Rankings(couplings, SELECTORS, batches or ())
        pruning = PruningContext(rankings=rankings, input_shape=input_shape)
        return ApplyContext(model=model, survey=survey, pruning=pruning)


def apply(plan: Plan, context: ApplyContext) -> Applied:
    """Return the model that `plan` makes of the context's dense model.

    Deterministic: the same plan and context give the same bits. A `Quantize` decision changes
    nothing here.

    Raises:
        PlanInvalid: A site is unknown or frozen, keeps more channels than it has, or its
            selector cannot run.
    """
    decisions = plan.prune_channels()
    for site in decisions:
        frozen = next((s.frozen for s in context.survey.sites if s.name == site), None)
        if frozen:
            raise PlanInvalid(f"Site {site!r} must stay whole: {frozen}")
    model, removal = ChannelPruning().apply(context.model, decisions, context.pruning)
    cost = context.survey.costs.cost(plan)
    return Applied(model=model, patch=removal.patch, cuts=removal.cuts, cost=cost)


def replay(patch: Patch, context: ApplyContext) -> nn.Module:
    """Return the module that `apply` returned when it left this patch, bit for bit.

    Raises:
        PlanInvalid: A site is unknown or frozen, or has no such channel.
    """
    model, _ = ChannelPruning().replay(context.model, patch, context.pruning)
    return model
