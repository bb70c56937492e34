"""The one door: a plan goes in, a compressed module comes out.

Order of application, whatever the plan's own order: blocks are dropped, channels removed, layers
factorized, weights set to zero, weights put on grids or into codebooks. Integers come last, on the
exported graph, because integer arithmetic exists only in the runtime
(`compression.primitives.quantize`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compression.catalogue import PRIMITIVES, SELECTORS
from compression.cost import PlanCost
from compression.decisions import DECISIONS, Decision
from compression.errors import PlanInvalid
from compression.graph import trace
from compression.patch import Patch
from compression.plan import Plan
from compression.primitives.context import ModuleContext
from compression.primitives.primitive import ModulePrimitive
from compression.primitives.rankings import Rankings
from compression.primitives.record import ModuleRecord
from compression.primitives.share import refuse_sparse_vectors
from compression.recover.hook import Hook
from compression.selectors.selector import Batch
from compression.site import MODEL_SITE, SiteKind
from compression.surveyed import Survey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One primitive's work.

    Attributes:
        kind: Of its decisions.
        decisions: By site.
        before: The module it was given.
        after: The module it made.
        record: What it left.
    """

    kind: str
    decisions: Mapping[str, Decision]
    before: nn.Module
    after: nn.Module
    record: ModuleRecord


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Applied:
    """A compressed module and how it came about.

    Attributes:
        model: Fresh module in eval mode; shares no storage with the dense one.
        stages: What was done, in order; `compression.certificate` checks each.
        cost: What the cost table says the plan costs.
    """

    model: nn.Module
    stages: tuple[Stage, ...]
    cost: PlanCost

    @property
    def patch(self) -> Patch:
        """The record from which `replay` makes the same structure."""
        return Patch(tuple((stage.kind, stage.record.to_json()) for stage in self.stages))

    def invariants(self) -> tuple[Hook, ...]:
        """Return fresh hooks that keep zeros and shared values through one training."""
        return tuple(hook for stage in self.stages for hook in stage.record.invariants())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ApplyContext:
    """What a warm worker keeps of a model, so that applying a plan is slicing alone.

    Attributes:
        model: The dense model, in eval mode; never changed.
        survey: Its survey.
        module: What the primitives use: couplings, rankings, calibration inputs.
    """

    model: nn.Module
    survey: Survey
    module: ModuleContext

    @staticmethod
    def build(
        model: nn.Module,
        survey: Survey,
        input_shape: tuple[int, int, int],
        batches: Sequence[Batch] | None = None,
        *,
        calibration: Sequence[Tensor] = (),
        seed: int = 0,
    ) -> ApplyContext:
        """Trace `model` once and match it with its survey.

        Args:
            model: The dense model; a copy of it is kept.
            survey: Made of this model.
            input_shape: C, H, W of one input.
            batches: Labelled batches, for selectors that need gradients.
            calibration: Preprocessed inputs `B x C x H x W`, for whatever looks at activations.
            seed: Of everything random in a primitive.

        Raises:
            PlanInvalid: The survey is of another model.
        """
        model = copy.deepcopy(model).eval()
        prunable = survey.prunable()
        found = {c.name: c for c in trace(model, input_shape)} if prunable else {}
        couplings = {}
        for site in prunable:
            coupling = found.get(site.name)
            if coupling is None or coupling.channels != site.channels:
                raise PlanInvalid(
                    f"Site {site.name!r} with {site.channels} channels is not in this model; "
                    "the survey is of another one"
                )
            couplings[site.name] = coupling
        module = ModuleContext(
            dense=model,
            survey=survey,
            rankings=Rankings(couplings, SELECTORS, batches or (), calibration, seed),
            input_shape=input_shape,
            calibration=calibration,
            batches=batches or (),
            seed=seed,
        )
        return ApplyContext(model=model, survey=survey, module=module)


def apply(plan: Plan, context: ApplyContext, after: Applied | None = None) -> Applied:
    """Return the model that `plan` makes of the context's dense model.

    Deterministic: the same plan and context give the same bits. A `Quantize` decision changes
    nothing here.

    Args:
        plan: Every decision, also those that `after` carried out already.
        context: Of the dense model.
        after: An earlier part of the same plan, which may have been trained since; what is left
            of the plan is applied to its model, which stays as it is.

    Raises:
        PlanInvalid: A site is unknown, frozen or inside a dropped block, a decision does not fit
            its site, or `after` carried out what comes later than something left.
    """
    _check_sites(plan, context.survey)
    refuse_sparse_vectors(plan)
    model = context.model if after is None else after.model
    stages = [] if after is None else list(after.stages)
    done = {stage.kind: stage.decisions for stage in stages}
    for kind, primitive in _on_modules():
        decisions = plan.of_kind(kind)
        if decisions == done.get(kind, {}):
            done.pop(kind, None)
            continue
        if done:
            raise PlanInvalid(f"{kind} cannot be applied after {', '.join(done)} was")
        made, record = primitive.apply(model, decisions, context.module)
        stages.append(
            Stage(kind=kind, decisions=decisions, before=model, after=made, record=record)
        )
        model = made
    if done:
        raise PlanInvalid(f"{', '.join(done)} was applied, and the plan does not ask for it")
    if model is context.model or (after is not None and model is after.model):
        model = copy.deepcopy(model)
    cost = context.survey.costs.cost(plan)
    return Applied(model=model, stages=tuple(stages), cost=cost)


def replay(patch: Patch, context: ApplyContext) -> nn.Module:
    """Return a module of the structure that `apply` made when it left this patch.

    Where channels and blocks were only removed, it is that module bit for bit; weights that were
    computed (factors, codebooks) come with the checkpoint.

    Raises:
        PlanInvalid: The patch is of another model.
    """
    model = copy.deepcopy(context.model)
    for kind, primitive in _on_modules():
        record = patch.stage(kind)
        if record is not None:
            model = primitive.replay(model, record, context.module)
    return model


def _on_modules() -> list[tuple[str, ModulePrimitive[Any]]]:
    return [(kind, PRIMITIVES[kind]) for kind in DECISIONS if kind in PRIMITIVES]


def _check_sites(plan: Plan, survey: Survey) -> None:
    kinds: dict[str, SiteKind] = {"prune_channels": "channels", "drop_block": "block"}
    frozen = {(site.kind, site.name): site.frozen for site in survey.sites}
    gone = tuple(f"{block}." for block in plan.dropped())
    for name, decision in plan:
        if gone and name.startswith(gone):
            raise PlanInvalid(
                f"Site {name!r} takes {decision.kind!r}, but the block around it is dropped"
            )
        if name == MODEL_SITE:
            continue
        reason = frozen.get((kinds.get(decision.kind, "layer"), name))
        if reason:
            raise PlanInvalid(f"Site {name!r} must stay whole: {reason}")
