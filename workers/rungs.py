"""The rungs below confirmation: apply, recalibrate, recover, deploy, score, time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compression.apply import Applied, apply
from compression.certificate import certify
from compression.errors import NotCertified
from compression.export import export_onnx, parity
from compression.plan import Plan
from compression.recover.batchnorm import recalibrate
from compression.recover.training import Recipe, TrainingData, train
from search.measurement import Measured, Measurement, Outcome
from search.trial import Fidelity, Trial
from workers.context import JobContext
from workers.deploy import deploy, needs_file, quantized
from workers.meters.accuracy import accuracy
from workers.readings import arithmetic, deployed_readings
from workers.recovered import Recovered, store_recovered
from workers.steps import Steps

Report = Callable[[Mapping[str, Any]], None]

PROXY_WIDTH = 0.08
"""Relative width of the latency ratio's interval that a proxy is timed to."""

PROXY_TIMING_S = 3.0
"""Longest timing of a proxy, per device."""

FULL_WIDTH = 0.05
FULL_TIMING_S = 8.0

PARITY_TOLERANCE = 1e-4
"""Largest difference between exported file and torch model, relative to the outputs' size."""


def proxy(trial: Trial, context: JobContext, steps: Steps, report: Report) -> Outcome:
    """Score a plan on the search subset, with no recovery or a short one."""
    applied = pressed(trial.plan, context, steps, thorough=False)
    model = applied.model
    if trial.fidelity is Fidelity.SHORT and trial.plan.decisions:
        recipe = dataclasses.replace(full_recipe(context), steps=context.spec.recovery.short_steps)
        recover(model, recipe, trial, context, steps, report)
    deployed = None
    if trial.plan.quantize() or needs_file(context):
        deployed = deploy(model, trial.plan, context, steps)
    images, labels = context.part(trial.fidelity)
    with steps.step("score"):
        if trial.plan.quantize() and deployed is not None:
            logits = context.score_file(deployed, images)
        else:
            logits = context.score_module(model, images)
    readings = accuracy(logits, labels, context.dense_logits(trial.fidelity), "search")
    readings += arithmetic(trial.plan, context)
    if deployed is not None:
        readings += deployed_readings(
            deployed,
            trial,
            context,
            steps,
            devices=context.timed_devices(),
            width=PROXY_WIDTH,
            max_seconds=PROXY_TIMING_S,
        )
    return Measured(Measurement(tuple(readings)))


def full(trial: Trial, context: JobContext, steps: Steps, report: Report) -> Outcome:
    """Recover a plan with the job's whole recipe and score the deployed file on all of search.

    Stores what confirmation needs: source, weights, deployed file, plan and a probe, under one
    manifest with the role `recovered`.
    """
    applied = pressed(trial.plan, context, steps, thorough=True)
    model = applied.model
    images, labels = context.part(Fidelity.FULL)
    story = [story_line("original", context.dense_logits(Fidelity.FULL), labels, context)]

    def note(name: str, logits: NDArray[np.float32]) -> None:
        story.append(story_line(name, logits, labels, context))

    if trial.plan.prune_channels():
        with steps.step("score"):
            note("prune_channels", context.score_module(model, images))
        if context.spec.recovery.epochs > 0:
            recover(model, full_recipe(context), trial, context, steps, report)
            with steps.step("score"):
                note("recover", context.score_module(model, images))
    with steps.step("export"):
        float_file = export_onnx(model, context.spec.model.input_shape)
        probe = context.inputs(images[: context.spec.scoring.parity_images])
        difference = parity(float_file, model, probe)
        with torch.inference_mode():
            expected = model(probe)
    if difference > PARITY_TOLERANCE:
        raise NotCertified(
            f"The exported file differs from the model by {difference:.2e} of its outputs' size; "
            f"{PARITY_TOLERANCE:.0e} is allowed"
        )
    plan, deployed, fall_back = trial.plan, float_file, None
    if plan.quantize() is not None:
        report({"step": "quantize", "done": 0, "of": 1})
        plan, fall_back = quantized(float_file, plan, trial, context, steps)
        deployed = fall_back.onnx
    with steps.step("score"):
        logits = context.score_file(deployed, images)
    if fall_back is not None:
        note("quantize", logits)
    readings = accuracy(logits, labels, context.dense_logits(Fidelity.FULL), "search")
    readings += arithmetic(plan, context)
    readings += deployed_readings(
        deployed,
        trial,
        context,
        steps,
        devices=context.timed_devices(),
        width=FULL_WIDTH,
        max_seconds=FULL_TIMING_S,
    )
    with steps.step("store"):
        steps.artifacts["recovered"] = store_recovered(
            Recovered(
                plan=plan,
                patch=applied.patch,
                onnx=deployed,
                state=model.state_dict(),
                probe=probe,
                expected=expected,
                story=tuple(story),
                parity=difference,
                fall_back=fall_back.to_json() if fall_back else None,
                seconds=dict(steps.seconds),
            ),
            context.store,
        )
    return Measured(Measurement(tuple(readings)))


def pressed(plan: Plan, context: JobContext, steps: Steps, *, thorough: bool) -> Applied:
    """Return the plan's model, certified, its BatchNorm statistics those of its own activations."""
    with steps.step("apply"):
        applied = apply(plan, context.apply_context)
    with steps.step("certify"):
        certify(
            context.apply_context.model,
            applied,
            plan,
            context.spec.model.input_shape,
            thorough=thorough,
        )
    if plan.prune_channels():
        with steps.step("recalibrate"):
            recalibrate(applied.model, context.batches(context.calibration_images), context.backend)
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
    model: nn.Module,
    recipe: Recipe,
    trial: Trial,
    context: JobContext,
    steps: Steps,
    report: Report,
) -> None:
    """Train the model in place by the recipe."""
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
        )
        recalibrate(model, context.batches(context.calibration_images), context.backend)


def _breathe(context: JobContext) -> None:
    context.quiet.breathe()


def story_line(
    name: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    context: JobContext,
) -> dict[str, Any]:
    """Return what the model scored after a step, for the report."""
    reading = accuracy(logits, labels, context.dense_logits(Fidelity.FULL), "search")[0]
    return {"step": name, "metric": reading.metric, "value": reading.value, "split": "search"}
