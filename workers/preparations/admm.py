"""Preparation `admm`: the network is trained until it can do without the channels that must go.

Reference:
    Liu et al. (2020), "AutoCompress", AAAI, https://arxiv.org/abs/1907.03141: ADMM towards the
    widths of a plan, hard pruning, retraining, purification.

Deviations:
    * All filters and columns of a channel are one group: it goes as a whole or stays.
    * The dense network teaches in both trainings, where the job's recovery distils.
    * Damage of purification is counted on images of the training split, as many as a proxy is
      scored on; where the data has none, on calibration images. Only where neither has labels is
      it the agreement with the job's model. Search-validation is never looked at for it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from compression.apply import Applied, ApplyContext, apply
from compression.catalogue import SELECTORS
from compression.counting import count_params
from compression.decisions import DropBlock, PruneChannels
from compression.errors import NotCertified
from compression.methods import resolve_space
from compression.patch import Patch
from compression.plan import Plan
from compression.primitives.rankings import Rankings
from compression.recover.admm import Admm, channel_sets
from compression.recover.purification import Purified, purify
from compression.recover.training import TrainingData, train
from compression.survey import survey
from search.trial import Fidelity
from workers.bases import Start, start_of
from workers.context import JobContext
from workers.errors import WorkerError
from workers.kept_recovery import KeptRecovery
from workers.meters.accuracy import accuracy
from workers.preparations.preparation import Order, Prepared
from workers.readings import arithmetic
from workers.recovery import check_arithmetic, full_recipe, pressed, recover
from workers.thin_base import ThinBase, composed, load_thin, require_removals, thin_parts

UPDATE_STEPS = 20
"""Training steps between two projections, at most."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdmmOptions:
    """Options of the preparation.

    Attributes:
        steps: Training steps at each value of rho, at least 1.
        rounds: Values of rho, at least 1.
        rho: The first and the last of them, positive, spaced geometrically.
        retrain_steps: After hard pruning, at least 0.
        purify: Whether channels that are nearly zero afterwards are dropped.
    """

    steps: int = 150
    rounds: int = 3
    rho: tuple[float, float] = (1e-3, 1e-1)
    retrain_steps: int = 300
    purify: bool = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("rounds", 1), ("retrain_steps", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise WorkerError(
                    f"Option {name!r} of preparation 'admm' is {value!r}; a whole number of at "
                    f"least {least} is required"
                )
        if len(self.rho) != 2 or min(self.rho) <= 0:
            raise WorkerError(
                f"Option 'rho' of preparation 'admm' is {self.rho}; two numbers > 0 are required"
            )

    @staticmethod
    def of(given: Mapping[str, Any]) -> AdmmOptions:
        """Return the options that an order names.

        Raises:
            WorkerError: One is unknown or out of its range.
        """
        known = {field.name for field in dataclasses.fields(AdmmOptions)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise WorkerError(
                f"Preparation 'admm' has no options {unknown}; known: {sorted(known)}"
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items()
        }
        return AdmmOptions(**values)

    @property
    def stages(self) -> tuple[float, ...]:
        """Values of rho."""
        if self.rounds == 1:
            return (self.rho[1],)
        return tuple(np.geomspace(*self.rho, self.rounds).tolist())


def prepare(order: Order) -> Prepared:
    """Train the base towards the order's plan, prune it, retrain, purify.

    Returns:
        `found` with the realised `plan` (JSON, counted in the job's model), `top1` on the search
        subset (the share of equal decisions where the data has no labels) and `purified`, how
        many channels went beyond the order's plan.

    Raises:
        PlanInvalid: The plan does more than removing channels and blocks, or cannot start here.
        NotCertified: The network is not what the plan says.
        WorkerError: An option is unknown or out of its range.
    """
    trial, context, steps = order.trial, order.context, order.steps
    require_removals(trial.plan)
    options = AdmmOptions.of(trial.preparation.options if trial.preparation else {})
    start = start_of(trial, context)
    kept = KeptRecovery(context.store, order.keep, order.resume)
    start = _trained(order, start, options, kept)
    applied = pressed(start.rest, context, steps, thorough=True, start=start)
    check_arithmetic(applied, trial, context)
    if options.retrain_steps:
        recover(
            applied,
            dataclasses.replace(full_recipe(context), steps=options.retrain_steps),
            # Another order of images than in the training before.
            dataclasses.replace(trial, seed=trial.seed + 1),
            context,
            steps,
            order.report,
            kept,
        )
    plan, patch, model, removed = (
        trial.plan,
        composed(start, applied.patch, context),
        applied.model,
        0,
    )
    if options.purify:
        with steps.step("purify"):
            plan, patch, model, removed = _purified(plan, patch, applied, context)
    images, labels = context.part(Fidelity.PROXY)
    with steps.step("score"):
        logits = context.score_module(model, images)
    readings = accuracy(logits, labels, context.dense_logits(Fidelity.PROXY), "search")
    return Prepared(
        found={"plan": plan.to_json(), "top1": readings[0].value, "purified": removed},
        parts=thin_parts(plan, patch, model),
        readings=(*readings, *arithmetic(plan, context)),
    )


def load(parts: Mapping[str, bytes], context: JobContext) -> ThinBase:
    """Return the base that `prepare` left."""
    return load_thin(parts, context)


def _trained(order: Order, start: Start, options: AdmmOptions, kept: KeptRecovery) -> Start:
    """Return the same start with ADMM-trained weights, whose L2 norms say which channels stay."""
    context, rest = order.context, start.rest
    blocks = {site: [DropBlock()] for site in rest.dropped()}
    model = apply(Plan.of(blocks), start.context).model
    rankings = start.context.module.rankings
    keep = {site: decision.keep_channels for site, decision in rest.prune_channels().items()}
    if not kept.enter(model, context.backend):
        images, labels = context.data.part("train")
        hook = Admm(
            {},
            joint=channel_sets(model, tuple(rankings.couplings.values()), keep),
            every=min(UPDATE_STEPS, options.steps),
            stages=options.stages,
        )
        with order.steps.step("admm"):
            train(
                model,
                TrainingData(
                    images=images, labels=labels, preprocessing=context.spec.model.preprocessing
                ),
                dataclasses.replace(
                    full_recipe(context), steps=options.steps * options.rounds, early_stop=None
                ),
                teacher=context.dense if context.spec.recovery.distill else None,
                generator=torch.Generator().manual_seed(order.trial.seed),
                backend=context.backend,
                progress=lambda data: order.report(
                    {
                        "step": "admm",
                        "done": data["step"],
                        "of": data["of"],
                        "loss": data["loss"],
                        "epoch": data["epoch"],
                    }
                ),
                breathe=lambda: _breathe(context),
                hooks=[hook],
                checkpoints=kept.checkpoints(),
                state=kept.state(),
            )
        kept.leave(model)
    whole = copy.deepcopy(start.context.model)
    # Dropped blocks were not trained; they are about to be dropped again.
    whole.load_state_dict(model.state_dict(), strict=False)
    module = dataclasses.replace(
        start.context.module, dense=whole, rankings=Rankings(rankings.couplings, SELECTORS)
    )
    return dataclasses.replace(
        start,
        context=dataclasses.replace(start.context, model=whole, module=module),
        rest=_by_norm(rest),
    )


def _by_norm(plan: Plan) -> Plan:
    """Return the plan with every channel decision by L2 norms, without refitting."""
    table = {
        site: [
            PruneChannels(keep_channels=decision.keep_channels)
            if isinstance(decision, PruneChannels)
            else decision
            for decision in decisions
        ]
        for site, decisions in plan.decisions
    }
    return Plan.of(table)


def _purified(
    plan: Plan, patch: Patch, applied: Applied, context: JobContext
) -> tuple[Plan, Patch, nn.Module, int]:
    """Return plan, patch and network after purification, and how many channels it removed."""
    methods, surveyed = context.spec.methods, context.survey
    space = resolve_space(surveyed.sites, methods, surveyed.costs)
    allowed = {
        knob.site: [int(choice) for choice in knob.choices]
        for knob in space.knobs
        if knob.field == "keep_channels"
    }
    thin = applied.model
    here: ApplyContext = context.context_of(thin, survey(thin, context.spec.model.input_shape))
    found = purify(
        thin,
        tuple(here.module.rankings.couplings.values()),
        allowed,
        recalibrate=context.recalibrate,
        score=lambda model: _points(model, context),
    )
    if not found.removed:
        return plan, patch, thin, 0
    realised = narrowed(plan, found, methods.selectors)
    then = Patch(((PruneChannels.kind, {"kept": {s: list(c) for s, c in found.kept.items()}}),))
    whole = composed(Start(context=here, rest=Plan(), stages=patch.stages), then, context)
    params, wanted = count_params(found.model), surveyed.costs.cost(realised).params
    if params != wanted:
        raise NotCertified(f"The purified network has {params} parameters; its plan says {wanted}")
    return realised, whole, found.model, found.removed


def narrowed(plan: Plan, found: Purified, selectors: Sequence[str]) -> Plan:
    """Return the plan with the widths that purification left; counted in the job's model.

    Args:
        plan: Of the network before.
        found: What purification did.
        selectors: Of the job: the first names decisions where the plan has none to be like.
    """
    before = plan.prune_channels()
    like = next(iter(before.values()), PruneChannels(keep_channels=1, selector=selectors[0]))
    table = {site: list(decisions) for site, decisions in plan.decisions}
    for site, channels in found.kept.items():
        others = [d for d in table.get(site, ()) if not isinstance(d, PruneChannels)]
        changed = dataclasses.replace(before.get(site, like), keep_channels=len(channels))
        table[site] = [*others, changed]
    return Plan.of(table)


def _points(model: nn.Module, context: JobContext) -> float:
    """Return accuracy in percent on images that were trained or calibrated with."""
    count = context.spec.scoring.proxy_images
    parts = [context.data.part("train"), context.data.part("calibration")]
    usable = [part for part in parts if len(part[0])]
    images, labels = next((part for part in usable if part[1] is not None), usable[0])
    images, labels = images[:count], None if labels is None else labels[:count]
    like = context.score_module(context.dense, images) if labels is None else None
    readings = accuracy(context.score_module(model, images), labels, like, "search")
    return 100.0 * readings[0].value


def _breathe(context: JobContext) -> None:
    context.quiet.breathe()
