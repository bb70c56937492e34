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
from search.device import DeviceSpec
from search.trial import Fidelity, Trial
from workers.context import JobContext
from workers.meters import runs_int8
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
    sizes = ("runtime_bytes", "download_bytes", "resident_bytes")
    return any(context.named(name) for name in sizes) or bool(context.timed_devices())


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


def fall_back_device(context: JobContext) -> DeviceSpec:
    """Return where it is timed whether a layer is faster in float.

    The first device that the job's objectives and bounds name and that can be timed from here with
    INT8 files; the first of the job's devices where there is none.
    """
    here = (
        device
        for device in context.timed_devices()
        if device.place == "local" and runs_int8(device.runtime)
    )
    return next(here, context.spec.devices[0])


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

    device = fall_back_device(context)

    def ratio(file: bytes, other: bytes) -> tuple[float, float, float]:
        with context.quiet.alone():
            found = time_onnx(
                file, other, device, seed=trial.seed, max_seconds=FALL_BACK_TIMING_S
            ).ratio
        return found.value, found.low, found.high

    with steps.step("quantize"):
        found = choose_float_layers(
            float_file,
            activations(context),
            decision,
            score=score,
            float_score=score(float_file),
            tolerance=INT8_TOLERANCE,
            ratio=ratio,
        )
    chosen = dataclasses.replace(decision, keep_float=found.names)
    return plan.with_decision(MODEL_SITE, chosen), found
