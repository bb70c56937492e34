"""The rungs below confirmation: apply, recalibrate, recover, deploy, score, time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compression.errors import NotCertified
from compression.export import export_onnx, parity
from search.measurement import Measured, Measurement, Outcome
from search.trial import Fidelity, Trial
from workers.bases import read_manifest, start_of
from workers.context import JobContext
from workers.deploy import deploy, keeps_norms, needs_file, quantized
from workers.kept_recovery import KeptRecovery
from workers.meters.accuracy import accuracy
from workers.readings import arithmetic, deployed_readings
from workers.recovered import Recovered, store_recovered
from workers.recovery import check_arithmetic, full_recipe, pressed, recover, recovered_model
from workers.steps import Steps
from workers.thin_base import composed

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
    """Score a plan on the search subset, with no recovery or a short one.

    Raises:
        NotCertified: The model is not what the plan says.
        PlanInvalid: The plan cannot start from the trial's base.
    """
    with steps.step("load"):
        start = start_of(trial, context)
    applied = pressed(start.rest, context, steps, thorough=False, start=start)
    check_arithmetic(applied, trial, context)
    model = applied.model
    if trial.fidelity is Fidelity.SHORT and trial.plan.decisions:
        recipe = dataclasses.replace(full_recipe(context), steps=context.spec.recovery.short_steps)
        recover(applied, recipe, trial, context, steps, report)
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


def full(
    trial: Trial, context: JobContext, steps: Steps, report: Report, kept: KeptRecovery
) -> Outcome:
    """Recover a plan with the job's whole recipe and score the deployed file on all of search.

    Stores what confirmation needs: source, weights, deployed file, plan and a probe, under one
    manifest with the role `recovered`. Whatever the trial started from, its patch there is counted
    in the job's model.

    Raises:
        NotCertified: The model is not what the plan says, or the file not what the model is.
        PlanInvalid: The plan cannot start from the trial's base.
    """
    images, labels = context.part(Fidelity.FULL)
    story = [story_line("original", context.dense_logits(Fidelity.FULL), labels, context)]

    def note(name: str, logits: NDArray[np.float32]) -> None:
        story.append(story_line(name, logits, labels, context))

    with steps.step("load"):
        start = start_of(trial, context)
    prepared = None if trial.base is None else read_manifest(trial.base, context.store).preparation
    if prepared is not None:
        with steps.step("score"):
            base = copy.deepcopy(start.context.model)
            context.recalibrate(base)
            note(prepared.kind, context.score_module(base, images))
    applied = recovered_model(trial, start, context, steps, report, note, kept)
    patch = composed(start, applied.patch, context)
    model = applied.model
    with steps.step("export"):
        float_file = export_onnx(
            model, context.spec.model.input_shape, keep_norms=keeps_norms(trial.plan)
        )
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
                patch=patch,
                onnx=deployed,
                state=model.state_dict(),
                probe=probe,
                expected=expected,
                story=tuple(story),
                parity=difference,
                fall_back=fall_back.to_json() if fall_back else None,
                seconds=dict(steps.seconds),
                base=None if prepared is None else {"artifact": trial.base, **prepared.to_json()},
            ),
            context.store,
        )
    return Measured(Measurement(tuple(readings)))


def story_line(
    name: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    context: JobContext,
) -> dict[str, Any]:
    """Return what the model scored after a step, for the report."""
    reading = accuracy(logits, labels, context.dense_logits(Fidelity.FULL), "search")[0]
    return {"step": name, "metric": reading.metric, "value": reading.value, "split": "search"}
