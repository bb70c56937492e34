"""The export that keeps shared weights whole: BatchNorm apart, one kind of zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compression.container import decode, encode_onnx
from compression.export import export_onnx, parity
from compression.models.cifar_resnet import cifar_resnet
from compression.onnx_graph import read_graph
from compression.onnx_norms import shorten_norms
from compression.onnx_zeros import positive_zeros
from tests.compression_tests.test_export import random_norms

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def shared() -> nn.Module:
    """A network whose convolutions take seven uneven values, one a zero of either sign."""
    torch.manual_seed(0)
    values = torch.tensor([-0.31, -0.17, -0.07, 0.0, 0.05, 0.13, 0.29])
    model = random_norms(cifar_resnet(8))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight / module.weight.abs().max() * 0.3
                nearest = (weight[..., None] - values).abs().argmin(-1)
                module.weight.copy_(torch.where(nearest == 3, weight * 0, values[nearest]))
    return model


@pytest.fixture(scope="module")
def kept(shared: nn.Module) -> bytes:
    return export_onnx(shared, SHAPE, keep_norms=True)


def test_kept_norms_leave_the_weights_as_they_are(shared: nn.Module, kept: bytes) -> None:
    graph = read_graph(kept).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    assert sum(node.op_type == "BatchNormalization" for node in graph.node) == 7
    for name, module in shared.named_modules():
        if isinstance(module, nn.Conv2d):
            np.testing.assert_array_equal(tensors[f"{name}.weight"], module.weight.detach())
            assert len(np.unique(tensors[f"{name}.weight"].view(np.uint32))) <= 7


def test_kept_norms_compute_the_same(shared: nn.Module, kept: bytes) -> None:
    inputs = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert parity(kept, shared, inputs) < 1e-5
    assert kept == export_onnx(shared, SHAPE, keep_norms=True)


def test_norms_hold_two_vectors_of_their_own_and_share_two(kept: bytes) -> None:
    model = read_graph(kept)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    widths = {len(tensors[node.input[1]]) for node in norms}
    for place, count in ((1, len(norms)), (2, len(norms)), (3, len(widths)), (4, len(widths))):
        assert len({node.input[place] for node in norms}) == count
    for node in norms:
        assert not tensors[node.input[3]].any()
        assert tensors[node.input[4]] + np.float32(1e-5) == pytest.approx(1, abs=1e-7)


def test_shortening_again_changes_little_and_folded_graphs_not_at_all(shared: nn.Module) -> None:
    folded = read_graph(export_onnx(shared, SHAPE))
    before = folded.SerializeToString(deterministic=True)
    assert shorten_norms(folded) == 0
    assert positive_zeros(folded) == 0
    assert folded.SerializeToString(deterministic=True) == before


def test_zeros_have_one_sign(kept: bytes) -> None:
    model = read_graph(kept)
    weight = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    values = numpy_helper.to_array(weight).copy()
    zeros = int((values == 0).sum())
    values[values == 0] = -0.0
    weight.CopyFrom(numpy_helper.from_array(values, "conv1.weight"))
    assert positive_zeros(model) == zeros > 0
    assert model == read_graph(kept)


def test_shared_weights_make_a_small_file(shared: nn.Module, kept: bytes) -> None:
    folded = export_onnx(shared, SHAPE)
    assert decode(encode_onnx(kept)) == kept
    assert len(encode_onnx(kept)) < 0.8 * len(encode_onnx(folded))
