"""From a plan to a certified model with its own statistics, and from there to its accuracy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compression.apply import Applied, apply
from compression.certificate import certify
from compression.plan import Plan
from compression.recover.training import Recipe, TrainingData, train
from search.trial import Fidelity, Trial
from workers.context import JobContext
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
) -> Applied:
    """Return the plan's model, certified, its BatchNorm statistics those of its own activations.

    Args:
        plan: Every decision.
        context: Of the job.
        steps: Where the time is noted.
        thorough: Of the certificate.
        after: A part of the plan that was carried out, certified and perhaps trained before.
    """
    with steps.step("apply"):
        applied = apply(plan, context.apply_context, after)
    with steps.step("certify"):
        certify(
            context.apply_context.model,
            applied,
            plan,
            context.spec.model.input_shape,
            thorough=thorough,
            since=0 if after is None else len(after.stages),
        )
    if applied.stages:
        with steps.step("recalibrate"):
            context.recalibrate(applied.model)
    return applied


def recovered_model(
    trial: Trial, context: JobContext, steps: Steps, report: Report, note: Note
) -> Applied:
    """Return the trial's model after the job's whole recovery; `note` is told of every step."""
    images, _ = context.part(Fidelity.FULL)
    recipe = full_recipe(context)
    first = trial.plan.before_codes()
    has_codes = any(trial.plan.of_kind(kind) for kind in ("quantize_weights", "share"))
    parts = [(first, 1.0 - CODES_SHARE), (trial.plan, CODES_SHARE)] if has_codes else [(first, 1.0)]
    applied: Applied | None = None
    for plan, share in parts:
        done = 0 if applied is None else len(applied.stages)
        applied = pressed(plan, context, steps, thorough=True, after=applied)
        if len(applied.stages) == done:
            continue
        with steps.step("score"):
            for stage in applied.stages[done:-1]:
                made = copy.deepcopy(stage.after)
                context.recalibrate(made)
                note(stage.kind, context.score_module(made, images))
            note(applied.stages[-1].kind, context.score_module(applied.model, images))
        if recipe.epochs > 0:
            scaled = dataclasses.replace(recipe, epochs=share * recipe.epochs)
            recover(applied, scaled, trial, context, steps, report)
            with steps.step("score"):
                note("recover", context.score_module(applied.model, images))
    assert applied is not None
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
    )


def recover(
    applied: Applied,
    recipe: Recipe,
    trial: Trial,
    context: JobContext,
    steps: Steps,
    report: Report,
) -> None:
    """Train the model in place by the recipe, keeping zeros and shared values as they are."""
    model = applied.model
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
            hooks=applied.invariants(),
        )
        context.recalibrate(model)


def _breathe(context: JobContext) -> None:
    context.quiet.breathe()
