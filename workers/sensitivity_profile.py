"""Process: measures what single decisions do to one model, in half a minute; prints JSON.

A process of its own under the rules of the quiet node: between two options it lets a stopwatch
through. Its priority is that of all others, since a process that is starved while it computes
would keep the stopwatch waiting.

Usage: `python -m workers.sensitivity_profile STORE_URL < request`, a request being what
`service.profiler` writes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compression.apply import ApplyContext
from compression.artifact import ModelArtifact
from compression.backend import FLOAT32
from compression.decisions import Decision, Quantize, decision_to_json
from compression.errors import CompressionError
from compression.export import export_onnx
from compression.models.registry import load_model
from compression.onnx_session import RUNTIME_ERRORS, open_session, run_batches
from compression.plan import Plan
from compression.preprocess import black, preprocess
from compression.primitives.quantize import quantize_onnx
from compression.recover.losses import distillation_loss
from compression.recover.statistics import choose_view, seen_as
from compression.sensitivity import TEMPERATURE, DamageMeter, Effect, profile
from compression.surveyed import Survey
from workers.datasets.load import load_dataset
from workers.errors import WorkerError
from workers.job import DatasetArtifact
from workers.open_store import open_store
from workers.quiet import QuietNode
from workers.sensitivity_options import (
    MAX_IMAGES,
    MAX_OPTIONS,
    MAX_SECONDS,
    Option,
    profile_options,
)
from workers.store import ArtifactStore

MIN_IMAGES = 32
MIN_OPTIONS = 10
PATIENCE = 4.0
"""Seconds on the clock for one of computing: other work goes first, and waiting for it must not
cost the profile its options."""

BATCH_IMAGES = 250
VIEW_IMAGES = 200
RANGE_IMAGES = 128
PASSES = 3.0
"""Forward passes of the dense model that one option costs, surgery included."""


UNMEASURABLE: tuple[type[Exception], ...] = (CompressionError, *RUNTIME_ERRORS)


def images_within(forward_s: float, options: int, seconds: float = MAX_SECONDS) -> int:
    """Return how many images let that many options be measured in the time; 32 to 500.

    Args:
        forward_s: One image through the dense model.
        options: How many are to be measured.
        seconds: For all of them.

    Raises:
        WorkerError: Hardly any option could be measured, and each would keep the node busy for
            long.
    """
    option_s = PASSES * forward_s * MIN_IMAGES
    if option_s > seconds / MIN_OPTIONS:
        raise WorkerError(
            f"One option takes {option_s:.1f} s on {MIN_IMAGES} images; "
            f"{seconds / MIN_OPTIONS:g} s is the limit, so that {MIN_OPTIONS} can be measured"
        )
    fitting = seconds / max(1e-9, PASSES * forward_s * max(1, options))
    return int(min(MAX_IMAGES, max(MIN_IMAGES, fitting)))


def profiled(
    meter: Meter,
    survey: Survey,
    *,
    breathe: Callable[[], object] = lambda: None,
    max_options: int = MAX_OPTIONS,
    max_seconds: float = MAX_SECONDS,
) -> dict[str, Any]:
    """Measure a model's options, the most telling first, as far as the limits allow.

    Args:
        meter: Of the dense model.
        survey: Of the same model.
        breathe: Called between two options.
        max_options: At most so many.
        max_seconds: No option is begun after so much computing, or `PATIENCE` times as long.

    Returns:
        JSON data: `effects`, `left_out` (site, decision and reason), and how it was measured.
    """
    start, computed = time.monotonic(), time.process_time()
    effects: list[Effect] = []
    left_out: list[dict[str, Any]] = []

    def skip(option: Option, reason: str) -> None:
        left_out.append(
            {"site": option[0], "decision": decision_to_json(option[1]), "reason": reason}
        )

    for option in profile_options(survey):
        breathe()
        if len(effects) >= max_options:
            skip(option, f"{max_options} options were measured")
        elif time.process_time() - computed > max_seconds:
            skip(option, f"{max_seconds:g} s of computing were over")
        elif time.monotonic() - start > PATIENCE * max_seconds:
            skip(option, f"{PATIENCE * max_seconds:g} s had passed on a busy node")
        else:
            try:
                effects.append(meter.effect(*option))
            except UNMEASURABLE as error:
                skip(option, str(error))
    return {
        "effects": [effect.to_json() for effect in effects],
        "left_out": left_out,
        "images": meter.images,
        "temperature": TEMPERATURE,
        "selector": "l2",
        "seconds": time.process_time() - computed,
    }


class Meter:
    """Measures one option of a model, integers included.

    Attributes:
        images: On which outputs are compared.
    """

    def __init__(
        self,
        model: nn.Module,
        survey: Survey,
        inputs: Tensor,
        statistics: list[Tensor],
    ) -> None:
        """Compute what the dense model says.

        Args:
            model: Dense, in eval mode.
            survey: Of it.
            inputs: Preprocessed images `n x C x H x W` float32.
            statistics: The same as the model saw its own in training, for BatchNorm.
        """
        shape = tuple(inputs.shape[1:])
        assert len(shape) == 3
        self.images = len(inputs)
        self._model, self._survey, self._inputs, self._shape = model, survey, inputs, shape
        context = ApplyContext.build(model, survey, shape)
        self._damage = DamageMeter(context, _batches(inputs), FLOAT32, statistics=statistics)

    def effect(self, site: str, decision: Decision) -> Effect:
        """Return what one decision alone does.

        Raises:
            CompressionError: It cannot be applied.
            RUNTIME_ERRORS: Its file does not run.
        """
        if not isinstance(decision, Quantize):
            return profile(self._damage, {site: [decision]})[0]
        # Integers exist in the deployed graph only.
        inputs = self._inputs.numpy()
        file = quantize_onnx(export_onnx(self._model, self._shape), inputs[:RANGE_IMAGES], decision)
        found = torch.from_numpy(np.array(run_batches(open_session(file), inputs)))
        with torch.inference_mode():
            wanted = torch.cat([self._model(part) for part in _batches(self._inputs)])
        cost = self._survey.costs.cost(Plan.of({site: [decision]}))
        return Effect(
            site=site,
            decision=decision,
            damage=max(0.0, float(distillation_loss(found.float(), wanted, TEMPERATURE))),
            macs=cost.macs,
            params=cost.params,
        )


def _batches(inputs: Tensor) -> list[Tensor]:
    return [inputs[at : at + BATCH_IMAGES] for at in range(0, len(inputs), BATCH_IMAGES)]


def _seconds_per_image(model: nn.Module, batch: Tensor) -> float:
    with torch.inference_mode():
        model(batch)
        # Of this process alone: the node may be busy, and the model is not slower for it.
        start = time.process_time()
        model(batch)
    return (time.process_time() - start) / len(batch)


def run(
    request: Mapping[str, Any], store: ArtifactStore, breathe: Callable[[], object]
) -> dict[str, Any]:
    """Load model and calibration images, and profile the model.

    Raises:
        CompressionError: The model or the data cannot be read.
        WorkerError: A file is missing, or there are no images to compare on.
    """
    artifact = ModelArtifact.from_json(request["model"])
    survey = Survey.from_json(request["survey"])
    weights = store.get(artifact.weights) if artifact.weights else None
    model = load_model(artifact, weights, request.get("code_dir")).eval()
    data = load_dataset(
        DatasetArtifact.from_json(request["dataset"]),
        store,
        layout=artifact.preprocessing.layout,
        input_shape=artifact.input_shape,
        num_classes=artifact.num_classes or None,
    )
    stored, _ = data.part("calibration")
    if len(stored) < 2:
        raise WorkerError(f"There are {len(stored)} calibration images; 2 are required")
    inputs = preprocess(stored[:MAX_IMAGES], artifact.preprocessing)
    options = min(MAX_OPTIONS, len(profile_options(survey)))
    breathe()
    inputs = inputs[: images_within(_seconds_per_image(model, inputs[:32]), options)]
    dark = black(artifact.preprocessing, artifact.input_shape[0])
    view = choose_view(model, lambda: [inputs[:VIEW_IMAGES]], dark, FLOAT32)
    statistics = list(seen_as(_batches(inputs), view, dark))
    breathe()
    return profiled(Meter(model, survey, inputs, statistics), survey, breathe=breathe)


def main() -> None:
    """Read the request from standard input; print `{"ok": profile}` or `{"refused": reason}`."""
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    parent = os.getppid()
    request = json.load(sys.stdin)
    quiet = QuietNode(Path(request["quiet_folder"]))

    def breathe() -> None:
        if os.getppid() != parent:
            # Who asked is gone, and nobody will read the answer.
            sys.exit(1)
        quiet.breathe()

    answer: dict[str, Any]
    try:
        with quiet.busy():
            answer = {"ok": run(request, open_store(sys.argv[1]), breathe)}
    except (CompressionError, WorkerError) as error:
        answer = {"refused": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
