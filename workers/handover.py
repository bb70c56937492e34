"""What a worker hands over to boards that are to time a deployed file: blobs under one manifest."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from compression.plan import canonical_json
from workers.meters import RUNTIMES, open_runtime
from workers.remote_timing import ROLE

if TYPE_CHECKING:
    from search.trial import Trial
    from workers.context import JobContext
    from workers.steps import Steps

PROBE_IMAGES = 64
"""Inputs on which a board's outputs are held against ours."""

STEP = "hand_over"

ALWAYS = frozenset({"latency_ms", "latency_hot_ms", "throughput"})
"""Metrics that every timing gives."""


def hand_over(
    deployed: bytes,
    trial: Trial,
    context: JobContext,
    steps: Steps,
    *,
    width: float,
    max_seconds: float,
) -> None:
    """Store what boards need to check and time a file; nothing where the job names no board.

    Args:
        deployed: ONNX bytes; the dense model's own for its trials.
        trial: Whose file.
        context: Of the job.
        steps: Gets the manifest, with the role `ROLE`.
        width: Relative width of the ratio's interval that is wanted.
        max_seconds: Longest timing.

    Raises:
        DeviceUnknown: A board's runtime needs files that cannot be made here.
    """
    boards = [device for device in context.spec.devices if device.place == "agent"]
    if not boards:
        return
    with steps.step(STEP):
        parts: dict[str, Any] = {}
        for runtime in sorted({board.runtime for board in boards}):
            for name, onnx in (("candidate", deployed), ("baseline", context.dense_onnx)):
                parts[f"{runtime}.{name}"] = context.store.put(_built(runtime, onnx))
        images = context.data.part("search")[0][:PROBE_IMAGES]
        archive = io.BytesIO()
        np.savez(
            archive,
            inputs=context.inputs(images).numpy(),
            expected=context.score_file(deployed, images),
        )
        parts["probe"] = context.store.put(archive.getvalue())
        document = {
            "parts": parts,
            # Kernels round 8-bit values differently; what must agree is what is decided.
            "compare": "values" if trial.plan.quantize() is None else "decisions",
            "seed": trial.seed,
            "width": width,
            "max_seconds": max_seconds,
            "metrics": {board.name: _wanted(board.name, context) for board in boards},
        }
        steps.artifacts[ROLE] = context.store.put(canonical_json(document).encode())


def _wanted(device: str, context: JobContext) -> list[str]:
    """Return the metrics that the job bounds on a board and that every timing does not give."""
    wanted = {o.metric for o in context.spec.objectives if o.device == device}
    bounded = {c.metric for c in context.spec.constraints if c.device == device}
    return sorted((wanted | bounded) - ALWAYS)


def _built(runtime: str, onnx: bytes) -> bytes:
    if RUNTIMES[runtime].suffix == ".onnx":
        return onnx
    return open_runtime(runtime, threads=1, seed=0).build(onnx)
