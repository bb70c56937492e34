"""The folder a user pulls: plain source, weights, the deployed graph, and how they came to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import nn

from compression.artifact import ModelArtifact
from compression.checkpoint_files import CheckpointFiles, json_file, with_card
from compression.codegen import generate
from compression.container import decode, encode_onnx
from compression.errors import CheckpointInvalid
from compression.model_card import ModelCard
from compression.plan import Plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointParts:
    """What a checkpoint is made of.

    Attributes:
        model: The compressed float32 network.
        onnx: The deployed graph, the one that was timed; INT8 when the plan says so.
        plan: The decisions.
        patch: Which channels stayed, per site, as JSON data.
        source: The original network.
        seed: Seed of the job.
        card: The model card.
    """

    model: nn.Module
    onnx: bytes
    plan: Plan
    patch: Mapping[str, Any]
    source: ModelArtifact
    seed: int
    card: ModelCard


def assemble(parts: CheckpointParts) -> CheckpointFiles:
    """Make all files of a checkpoint; equal parts give equal bytes.

    Raises:
        CompressionError: The network has no plain source.
        CheckpointInvalid: The container does not give the graph back.
    """
    generated = generate(parts.model, parts.source.input_shape)
    container = encode_onnx(parts.onnx)
    if decode(container) != parts.onnx:
        raise CheckpointInvalid("model.ppz does not give model.onnx back")
    files: dict[str, bytes] = {
        "model.py": generated.source.encode(),
        "model.safetensors": save(dict(generated.state), metadata={"format": "pt"}),
        "model.onnx": parts.onnx,
        "model.ppz": container,
        "plan.json": json_file(_plan_record(parts)),
        "LICENSE-NOTE": _licence_note(parts.card).encode(),
    }
    return with_card(files, parts.card)


def _plan_record(parts: CheckpointParts) -> dict[str, Any]:
    return {
        "version": 1,
        "plan": parts.plan.to_json(),
        "plan_digest": parts.plan.digest,
        "patch": parts.patch,
        "source": parts.source.to_json(),
        "seed": parts.seed,
    }


def _licence_note(card: ModelCard) -> str:
    licence = card.source_licence or "Its licence was not stated when it was uploaded."
    return (
        f"This checkpoint is a compressed form of the network {card.source_name!r}\n"
        f"(SHA-256 of its weights: {card.source_digest or 'unknown, made by a builder'}).\n\n"
        "It is a derived work: the licence of that network applies to its weights, and the\n"
        "terms of the data it was trained with apply as they applied before.\n\n"
        f"{licence}\n"
    )
