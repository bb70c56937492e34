"""What a full trial leaves for its confirmation: files under one manifest, nothing in memory."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from compression.artifact import Digest
from compression.patch import Patch
from compression.plan import Plan, canonical_json
from workers.store import ArtifactStore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recovered:
    """A recovered model and how it came about.

    Attributes:
        plan: As realised: layers that had to stay float are named in it.
        patch: From the job's model to the module, whatever the trial started from.
        onnx: The deployed file.
        state: Weights of the recovered module, by name.
        probe: `n x C x H x W` inputs.
        expected: The module's outputs on them, `n x classes`.
        story: What the model scored after each step, on search-validation.
        parity: Difference between exported float file and module, relative to the outputs.
        fall_back: Which layers stayed float and why; None without quantization.
        seconds: Wall seconds by step.
        base: `artifact`, `kind` and `options` of the preparation that it started from; None for
            the job's model.
    """

    plan: Plan
    patch: Patch
    onnx: bytes
    state: Mapping[str, torch.Tensor]
    probe: torch.Tensor
    expected: torch.Tensor
    story: Sequence[Mapping[str, Any]]
    parity: float
    fall_back: Mapping[str, Any] | None
    seconds: Mapping[str, float]
    base: Mapping[str, Any] | None = None


def store_recovered(recovered: Recovered, store: ArtifactStore) -> Digest:
    """Store the parts and return the digest of the manifest that names them."""
    buffer = io.BytesIO()
    np.savez(buffer, probe=recovered.probe.numpy(), expected=recovered.expected.numpy())
    document = {"plan": recovered.plan.to_json(), "patch": recovered.patch.to_json()}
    state = {name: tensor.detach().contiguous() for name, tensor in recovered.state.items()}
    manifest = {
        "parts": {
            "plan": store.put(canonical_json(document).encode()),
            "weights": store.put(save(state)),
            "onnx": store.put(recovered.onnx),
            "probe": store.put(buffer.getvalue()),
        },
        "story": list(recovered.story),
        "parity": recovered.parity,
        "fall_back": recovered.fall_back,
        "seconds": dict(recovered.seconds),
        "base": None if recovered.base is None else dict(recovered.base),
    }
    return store.put(json.dumps(manifest).encode())


def load_recovered(digest: Digest, store: ArtifactStore) -> Recovered:
    """Read back what `store_recovered` wrote.

    Raises:
        BlobMissing: A part is gone.
    """
    manifest = json.loads(store.get(digest))
    parts = {role: store.get(Digest(name)) for role, name in manifest["parts"].items()}
    document = json.loads(parts["plan"])
    with np.load(io.BytesIO(parts["probe"]), allow_pickle=False) as arrays:
        probe, expected = arrays["probe"], arrays["expected"]
    return Recovered(
        plan=Plan.from_json(document["plan"]),
        patch=Patch.from_json(document["patch"]),
        onnx=parts["onnx"],
        state=load(parts["weights"]),
        probe=torch.from_numpy(probe),
        expected=torch.from_numpy(expected),
        story=tuple(manifest["story"]),
        parity=manifest["parity"],
        fall_back=manifest["fall_back"],
        seconds=manifest["seconds"],
        base=manifest.get("base"),
    )
