"""The folder a user pulls: plain source, weights, the deployed graph, and how they came to be."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import nn

from compression.artifact import ModelArtifact
from compression.codegen import generate
from compression.container import decode, encode_onnx
from compression.errors import CheckpointInvalid
from compression.model_card import ModelCard, render_readme
from compression.plan import Plan

CheckpointFiles = Mapping[str, bytes]
"""Content by file name; the names are those of the folder, without directories."""

# The oldest moment a zip can name: equal files make equal archives on any day.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o644


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
        "plan.json": _json(_plan_record(parts)),
        "LICENSE-NOTE": _licence_note(parts.card).encode(),
    }
    digests = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    }
    files["report.json"] = _json({**parts.card.to_json(), "files": digests})
    sizes = {name: len(data) for name, data in sorted(files.items())}
    files["README.md"] = render_readme(parts.card, sizes).encode()
    return dict(sorted(files.items()))


def zip_bytes(files: CheckpointFiles) -> bytes:
    """Return one zip archive of the files; equal files give equal bytes, on any machine.

    Nothing is deflated: weights hardly shrink, and deflate's output depends on zlib's version.

    Raises:
        CheckpointInvalid: A name is not that of a plain file.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            if not name or name in (".", "..") or set(name) & set("/\\:\0"):
                raise CheckpointInvalid(f"{name!r} is not a plain file name")
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, whatever this machine is
            entry.external_attr = _FILE_MODE << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


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


def _json(data: Any) -> bytes:
    """Readable, in one canonical order; NaN is refused."""
    try:
        text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise CheckpointInvalid(f"A number of the report is not finite: {error}") from error
    return f"{text}\n".encode()
