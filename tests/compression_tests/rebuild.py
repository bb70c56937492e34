"""Rebuilds checkpoints from what `plan.json` says; run as a module, it prints their hashes."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from typing import Any

import numpy as np
import torch

from compression.apply import ApplyContext, apply
from compression.artifact import ModelArtifact
from compression.backend import FLOAT32
from compression.certificate import certify
from compression.checkpoint import CheckpointParts, assemble
from compression.checkpoint_files import zip_bytes
from compression.decisions import (
    Decision,
    DropBlock,
    Factorize,
    PruneChannels,
    Quantize,
    QuantizeWeights,
    Share,
    Sparsify,
)
from compression.export import export_onnx
from compression.models.cifar_resnet import cifar_resnet
from compression.plan import Plan
from compression.primitives.quantize import quantize_onnx
from compression.recover.batchnorm import recalibrate
from compression.recover.training import Recipe, TrainingData, train
from compression.survey import survey
from tests.compression_tests.test_checkpoint import SHAPE, card
from tests.compression_tests.test_export import random_norms

SOURCE = ModelArtifact(
    weights=None,
    format="python",
    architecture="cifar_resnet14",
    input_shape=SHAPE,
    num_classes=10,
)


def mixed_plan(*, integers: bool) -> Plan:
    """Return a plan in which every primitive decides something."""
    decisions: dict[str, list[Decision]] = {
        "layer1.1": [DropBlock()],
        "layer1.0.conv1": [PruneChannels(keep_channels=8, refit="least_squares")],
        "layer2.1.conv1": [
            PruneChannels(keep_channels=16, selector="thinet", refit="least_squares")
        ],
        "layer3.0.conv2": [Factorize(method="spatial", rank_ratio=0.5, whiten=True)],
        "layer3.1.conv1": [Sparsify(sparsity=0.6), Share(entries=16)],
        "layer2.0.conv2": [Sparsify(sparsity=0.5, pattern="2:4", criterion="obs")],
        "layer3.1.conv2": [QuantizeWeights(bits=4)],
    }
    if integers:
        decisions["model"] = [Quantize(calibrator="mse")]
    return Plan.of(decisions)


def rebuild(document: dict[str, Any]) -> str:
    """Return the SHA-256 of the checkpoint that plan, source and seed lead to."""
    torch.set_num_threads(1)
    plan, seed = Plan.from_json(document["plan"]), int(document["seed"])
    torch.manual_seed(3)
    dense = random_norms(cifar_resnet(14)).eval()
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(32, *SHAPE, generator=generator) for _ in range(2)]
    context = ApplyContext.build(dense, survey(dense, SHAPE), SHAPE, calibration=inputs, seed=seed)
    applied = apply(plan, context)
    certify(dense, applied, plan, SHAPE)
    recalibrate(applied.model, inputs, FLOAT32)
    rng = np.random.default_rng(seed)
    data = TrainingData(
        images=rng.integers(0, 255, (64, *SHAPE)).astype(np.uint8),
        labels=rng.integers(0, 10, 64),
        preprocessing=SOURCE.preprocessing,
    )
    train(
        applied.model,
        data,
        Recipe(steps=3, batch_size=16, learning_rate=0.01),
        teacher=copy.deepcopy(dense),
        generator=generator,
        backend=FLOAT32,
        progress=lambda _: None,
        breathe=lambda: None,
        hooks=applied.invariants(),
    )
    onnx = export_onnx(applied.model, SHAPE, keep_norms=plan.quantize() is None)
    decision = plan.quantize()
    if decision is not None:
        onnx = quantize_onnx(onnx, inputs[0].numpy(), decision)
    parts = CheckpointParts(
        model=applied.model,
        onnx=onnx,
        plan=plan,
        patch=applied.patch.to_json(),
        source=SOURCE,
        seed=seed,
        card=card(),
    )
    return hashlib.sha256(zip_bytes(assemble(parts))).hexdigest()


if __name__ == "__main__":
    sys.stdout.write("\n".join(rebuild(document) for document in json.loads(sys.stdin.read())))
