"""From a compressed module to the file that the runtime loads."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compression.decisions import QuantizeWeights, Share
from compression.export import export_onnx
from compression.plan import Plan
from compression.primitives.float_layers import FloatLayers, choose_float_layers
from compression.primitives.quantize import quantize_onnx
from compression.site import MODEL_SITE
from search.trial import Fidelity, Trial
from workers.context import JobContext
from workers.meters.accuracy import accuracy
from workers.meters.latency import time_onnx
from workers.steps import Steps

CALIBRATION_IMAGES = 128
"""Images on which activation ranges are found."""

INT8_TOLERANCE = 0.003
"""Accuracy that INT8 may cost before layers fall back to float."""

FALL_BACK_TIMING_S = 2.0
"""Longest timing of one candidate of the fall-back."""


def needs_file(context: JobContext) -> bool:
    """Whether a bound is on something only the deployed file has."""
    names = ("runtime_bytes", "download_bytes", "resident_bytes", "latency_ms", "throughput")
    return any(context.named(name) for name in names)


def deploy(model: nn.Module, plan: Plan, context: JobContext, steps: Steps) -> bytes:
    """Return the file that the runtime loads under the plan."""
    with steps.step("export"):
        file = export_onnx(model, context.spec.model.input_shape, keep_norms=keeps_norms(plan))
    decision = plan.quantize()
    if decision is not None:
        with steps.step("quantize"):
            file = quantize_onnx(file, activations(context), decision)
    return file


def keeps_norms(plan: Plan) -> bool:
    """Whether BatchNorm stays beside its convolution in the file.

    Folding would multiply every filter by its own factor: weights of few values become weights of
    many, which no code stores in few bits. Integers are made from folded weights all the same.
    """
    coded = plan.of_kind(Share.kind) or plan.of_kind(QuantizeWeights.kind)
    return bool(coded) and plan.quantize() is None


def activations(context: JobContext) -> NDArray[np.float32]:
    """Return the inputs on which activation ranges are found."""
    inputs: NDArray[np.float32] = context.inputs(
        context.calibration_images[:CALIBRATION_IMAGES]
    ).numpy()
    return inputs


def quantized(
    float_file: bytes, plan: Plan, trial: Trial, context: JobContext, steps: Steps
) -> tuple[Plan, FloatLayers]:
    """Return the plan with the layers that had to stay in float, and why, with its file."""
    decision = plan.quantize()
    assert decision is not None
    images, labels = context.part(Fidelity.FULL)

    def score(file: bytes) -> float:
        readings = accuracy(
            context.score_file(file, images), labels, context.dense_logits(Fidelity.FULL), "search"
        )
        return readings[0].value

    def median_ms(file: bytes) -> float:
        with context.quiet.alone():
            result = time_onnx(
                file,
                float_file,
                context.spec.devices[0],
                seed=trial.seed,
                max_seconds=FALL_BACK_TIMING_S,
            )
        return result.readings[0].value

    with steps.step("quantize"):
        found = choose_float_layers(
            float_file,
            activations(context),
            decision,
            score=score,
            float_score=score(float_file),
            tolerance=INT8_TOLERANCE,
            time=median_ms,
        )
    chosen = dataclasses.replace(decision, keep_float=found.names)
    return plan.with_decision(MODEL_SITE, chosen), found
