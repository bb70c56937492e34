"""The files that the stopwatch's benchmarks time: trained ResNets, their variants, and stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compression.apply import ApplyContext, apply
from compression.artifact import ModelArtifact
from compression.decisions import DropBlock, PruneChannels, Quantize
from compression.export import export_onnx
from compression.models.registry import build
from compression.plan import Plan
from compression.primitives.quantize import quantize_onnx
from compression.survey import survey
from tests.cifar import state_dict

SHAPE = (3, 32, 32)


def trained(folder: Path, architecture: str) -> nn.Module:
    """Return a trained CIFAR ResNet in eval mode."""
    artifact = ModelArtifact(
        weights=None, format="safetensors", architecture=architecture, input_shape=SHAPE
    )
    model = build(artifact)
    model.load_state_dict(state_dict(folder, architecture))
    return model.eval()


def resnet(folder: Path, architecture: str = "cifar_resnet20") -> bytes:
    """Return a trained CIFAR ResNet as the runtime gets it."""
    return export_onnx(trained(folder, architecture), SHAPE)


def variants(folder: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield name, file and dense file of ten networks: widths, dropped blocks, INT8."""
    inputs = np.random.default_rng(0).standard_normal((32, *SHAPE), dtype=np.float32)
    for depth, dropped in ((20, 2), (56, 9)):
        name = f"cifar_resnet{depth}"
        model = trained(folder, name)
        surveyed = survey(model, SHAPE)
        context = ApplyContext.build(model, surveyed, SHAPE)
        dense = export_onnx(model, SHAPE)

        def pressed(plan: Plan, context: ApplyContext = context) -> bytes:
            return export_onnx(apply(plan, context).model, SHAPE)

        for share in (0.75, 0.5):
            kept = {
                site.name: [PruneChannels(keep_channels=max(8, int(share * site.channels)))]
                for site in surveyed.prunable()
            }
            yield f"{name}, width {share}", pressed(Plan.of(kept)), dense
        blocks = [site.name for site in surveyed.sites if site.kind == "block"][-dropped:]
        shallow = pressed(Plan.of({block: [DropBlock()] for block in blocks}))
        yield f"{name}, {dropped} blocks dropped", shallow, dense
        yield f"{name}, int8", quantize_onnx(dense, inputs, Quantize()), dense
        both = quantize_onnx(shallow, inputs, Quantize())
        yield f"{name}, {dropped} blocks dropped, int8", both, dense


def stages(count: int, *, width: int = 32, size: int = 16) -> bytes:
    """Return a chain of identical 3x3 convolutions; nothing else costs time worth naming.

    Weights are drawn per stage, so that no two stages are one node to the runtime.
    """
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "input"
    for index in range(count):
        kernel = rng.standard_normal((width, width, 3, 3), dtype=np.float32) / (3 * width**0.5)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"))
        name = "logits" if index == count - 1 else f"c{index}"
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [name], pads=[1] * 4))
        last = name
    shape: list[str | int | None] = ["n", width, size, size]
    graph = helper.make_graph(
        nodes,
        "stages",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        weights,
    )
    opset = [helper.make_opsetid("", 18)]
    file: bytes = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return file
