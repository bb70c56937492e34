"""Process: loads one registered model, checks it and surveys it; prints the result as JSON.

A process of its own, so that a hostile or huge model can take down nothing but itself.
Usage: `python -m workers.survey_model STORE_URL < model.json`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import torch

from compression.artifact import ModelArtifact
from compression.errors import CompressionError
from compression.export import export_onnx
from compression.models.registry import load_model
from compression.survey import survey
from search.device import LOCAL_DEVICES
from workers.meters.latency import time_baseline
from workers.open_store import open_store
from workers.store import ArtifactStore

TIMED_IMAGES = 64
TIMING_S = 3.0


def surveyed(artifact: ModelArtifact, store: ArtifactStore, code_dir: str | None) -> dict[str, Any]:
    """Return sites, costs and what the forecast of a job needs.

    Raises:
        CompressionError: The weights do not fit the architecture, or the model cannot be traced.
    """
    weights = store.get(artifact.weights) if artifact.weights else None
    model = load_model(artifact, weights, code_dir)
    found = survey(model, artifact.input_shape)
    batch = torch.zeros(TIMED_IMAGES, *artifact.input_shape)
    with torch.inference_mode():
        model(batch)
        start = time.perf_counter()
        model(batch)
        forward_ms = 1000 * (time.perf_counter() - start) / TIMED_IMAGES
        classes = int(model(batch[:1]).shape[-1])
    file = export_onnx(model, artifact.input_shape)
    readings = []
    for device in LOCAL_DEVICES:
        result = time_baseline(file, device, seed=0, max_seconds=TIMING_S)
        readings += [reading.to_json() for reading in result.readings]
    return {
        "survey": found.to_json(),
        "num_classes": classes,
        "forward_ms_per_image": forward_ms,
        "runtime_bytes": len(file),
        "readings": readings,
    }


def main() -> None:
    """Read the artifact from standard input; print `{"ok": ...}` or `{"refused": reason}`."""
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    artifact = ModelArtifact.from_json(request["model"])
    answer: dict[str, Any]
    try:
        answer = {"ok": surveyed(artifact, open_store(sys.argv[1]), request.get("code_dir"))}
    except CompressionError as error:
        answer = {"refused": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
