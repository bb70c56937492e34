"""From a plan to a certified model with its own statistics, and from there to its accuracy."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compression.apply import Applied, apply
from compression.certificate import certify
from compression.decisions import PruneChannels
from compression.errors import NotCertified
from compression.plan import Plan
from compression.recover.training import Recipe, TrainingData, train
from compression.recover.training_state import TrainingState
from search.finalists import compared_accuracy
from search.trial import Fidelity, Trial
from workers.bases import Start
from workers.context import JobContext
from workers.kept_recovery import KeptRecovery, Rungs
from workers.meters.accuracy import accuracy
from workers.race import rung_shares
from workers.recovery_recipe import quantization_hooks
from workers.steps import Steps

Report = Callable[[Mapping[str, Any]], None]
Note = Callable[[str, NDArray[np.float32]], None]
"""Takes a step's name and what the model says after it on search-validation."""

CODES_SHARE = 0.25
"""Share of the recovery that follows low bits and codebooks, where a plan has them: they are made
of weights that have recovered from everything else, as in Deep Compression (Han et al., 2016)."""


def pressed(
    plan: Plan,
    context: JobContext,
    steps: Steps,
    *,
    thorough: bool,
    after: Applied | None = None,
    start: Start | None = None,
) -> Applied:
    """Return the plan's model, certified, its BatchNorm statistics those of its own activations.

    Args:
        plan: Every decision that is still to be applied.
        context: Of the job.
        steps: Where the time is noted.
        thorough: Of the certificate.
        after: A part of the plan that was carried out, certified and perhaps trained before.
        start: Where the trial begins; None for the job's model.
    """
    beginning = context.apply_context if start is None else start.context
    with steps.step("apply"):
        applied = apply(plan, beginning, after)
    with steps.step("certify"):
        certify(
            beginning.model,
            applied,
            plan,
            context.spec.model.input_shape,
            thorough=thorough,
            since=0 if after is None else len(after.stages),
        )
    changed = applied.stages or beginning is not context.apply_context
    if changed and not _only_refitted(applied):
        with steps.step("recalibrate"):
            context.recalibrate(applied.model)
    return applied


def _only_refitted(applied: Applied) -> bool:
    """Whether all that was done is a removal whose consumers were fitted to what they gave.

    They were fitted to what the BatchNorm behind them was made for; its statistics taken anew
    cost 2 to 3 points (`compression.primitives.refit`).
    """
    return [stage.kind for stage in applied.stages] == [PruneChannels.kind] and all(
        isinstance(decision, PruneChannels) and decision.refit == "least_squares"
        for decision in applied.stages[0].decisions.values()
    )


def check_arithmetic(applied: Applied, trial: Trial, context: JobContext) -> None:
    """Check that a model made from a base costs what its plan costs in the job's model.

    Raises:
        NotCertified: It does not.
    """
    wanted = context.survey.costs.cost(trial.plan)
    found = applied.cost
    if (found.macs, found.params) != (wanted.macs, wanted.params):
        raise NotCertified(
            f"From its base the plan has {found.macs} MACs and {found.params} parameters; from "
            f"the job's model {wanted.macs} and {wanted.params}"
        )


def recovered_model(
    trial: Trial,
    start: Start,
    context: JobContext,
    steps: Steps,
    report: Report,
    note: Note,
    kept: KeptRecovery,
) -> Applied:
    """Return the trial's model after the job's whole recovery.

    Args:
        trial: At fidelity `full`.
        start: Where it begins.
        context: Of the job.
        steps: Where the time is noted.
        report: Takes progress.
        note: Is told of every step.
        kept: How far earlier attempts came.

    Raises:
        NotCertified: The model is not what the plan says.
    """
    images, _ = context.part(Fidelity.FULL)
    recipe = full_recipe(context)
    rest = start.rest
    first = rest.before_codes()
    has_codes = any(rest.of_kind(kind) for kind in ("quantize_weights", "share"))
    parts = [(first, 1.0 - CODES_SHARE), (rest, CODES_SHARE)] if has_codes else [(first, 1.0)]
    applied: Applied | None = None
    for plan, share in parts:
        done = 0 if applied is None else len(applied.stages)
        # What a base was trained for is not what this trial is: it recovers in any case.
        is_new = trial.base is not None and applied is None
        applied = pressed(plan, context, steps, thorough=True, after=applied, start=start)
        if len(applied.stages) == done and not is_new:
            continue
        with steps.step("score"):
            for stage in applied.stages[done:-1]:
                made = copy.deepcopy(stage.after)
                context.recalibrate(made)
                note(stage.kind, context.score_module(made, images))
            if len(applied.stages) > done:
                note(applied.stages[-1].kind, context.score_module(applied.model, images))
        if recipe.epochs > 0:
            scaled = dataclasses.replace(recipe, epochs=share * recipe.epochs)
            # A part that only follows codes is short, and compares with no other trial's first.
            rungs = _rungs(applied, context, report) if plan is first else None
            recover(applied, scaled, trial, context, steps, report, kept, rungs)
            with steps.step("score"):
                note("recover", context.score_module(applied.model, images))
    assert applied is not None
    check_arithmetic(applied, trial, context)
    return applied


def full_recipe(context: JobContext) -> Recipe:
    """Return the job's whole recovery as the training loop takes it."""
    wanted = context.spec.recovery
    return Recipe(
        epochs=wanted.epochs,
        learning_rate=wanted.learning_rate,
        batch_size=wanted.batch_size,
        temperature=wanted.temperature,
        distill_weight=wanted.distill_weight if wanted.distill else 0.0,
        augment=wanted.augment,
        kd_loss=wanted.kd_loss,
        feature_loss=wanted.feature_loss if wanted.distill else "none",
        mixup=wanted.mixup,
        average=wanted.average,
        weight_decay=wanted.weight_decay,
        early_stop=wanted.early_stop,
    )


def recover(
    applied: Applied,
    recipe: Recipe,
    trial: Trial,
    context: JobContext,
    steps: Steps,
    report: Report,
    kept: KeptRecovery | None = None,
    rungs: Rungs | None = None,
) -> None:
    """Train the model in place by the recipe, keeping zeros and shared values as they are.

    Args:
        applied: Whose model is trained.
        recipe: How.
        trial: Gives the seed.
        context: Of the job.
        steps: Where the time is noted.
        report: Takes progress.
        kept: How far earlier attempts came, and where this one's checkpoints go; None: the
            training is too short to be worth any.
        rungs: Where the race looks at the training; None: nowhere.
    """
    model = applied.model
    if kept is not None and kept.enter(model, context.backend):
        return
    images, labels = context.data.part("train")
    with steps.step("recover"):
        train(
            model,
            TrainingData(
                images=images, labels=labels, preprocessing=context.spec.model.preprocessing
            ),
            recipe,
            teacher=context.dense if context.spec.recovery.distill else None,
            generator=torch.Generator().manual_seed(trial.seed),
            backend=context.backend,
            progress=lambda data: report(
                {
                    "step": "recover",
                    "done": data["step"],
                    "of": data["of"],
                    "loss": data["loss"],
                    "epoch": data["epoch"],
                }
            ),
            breathe=lambda: _breathe(context),
            hooks=(
                *applied.invariants(),
                *quantization_hooks(trial.plan, applied, context.spec.recovery),
            ),
            checkpoints=None if kept is None else kept.checkpoints(rungs),
            state=None if kept is None else kept.state(),
        )
        context.recalibrate(model)
    if kept is not None:
        kept.leave(model)


def _rungs(applied: Applied, context: JobContext, report: Report) -> Rungs | None:
    """Return where and how the finalists' race looks at a training; None without one."""
    spec = context.spec
    metric = compared_accuracy(spec.objectives, spec.constraints)
    if not spec.recovery.raced or metric is None:
        return None
    images, labels = context.part(Fidelity.FULL)
    total = full_recipe(context).total_steps(len(context.data.part("train")[0]))
    untrained = copy.deepcopy(applied.model)

    def score(state: TrainingState) -> float:
        model = copy.deepcopy(untrained)
        model.load_state_dict(state.part("model"))
        model.eval()
        # The training goes on as if nobody had looked.
        with torch.random.fork_rng(devices=[]):
            context.recalibrate(model)
            logits = context.score_module(model, images)
        readings = accuracy(logits, labels, context.dense_logits(Fidelity.FULL), "search")
        return next(reading.value for reading in readings if reading.metric == metric)

    shares = rung_shares(spec.recovery.race_reduction)
    return Rungs(
        steps=tuple(math.ceil(share * total) for share in shares), score=score, report=report
    )


def _breathe(context: JobContext) -> None:
    context.quiet.breathe()
