"""INT8 graphs, their ranges, and the layers that stay float."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from compression.decisions import Calibrator, Quantize
from compression.errors import CompressionError
from compression.export import export_onnx
from compression.models.cifar_resnet import BasicBlock, cifar_resnet
from compression.onnx_graph import read_graph
from compression.onnx_session import open_session, run_batches
from compression.primitives.calibrate import CALIBRATORS, value_ranges
from compression.primitives.float_layers import choose_float_layers
from compression.primitives.node_noise import noise_sources
from compression.primitives.node_profile import node_times
from compression.primitives.quantize import calibrate, quantize_calibrated, quantize_onnx
from tests import cifar
from tests.compression_tests.test_export import random_norms

SHAPE = (3, 32, 32)
Images = NDArray[np.float32]


@pytest.fixture(scope="module")
def images() -> Images:
    rng = np.random.default_rng(0)
    return rng.standard_normal((48, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="module")
def float_graph() -> bytes:
    torch.manual_seed(0)
    return export_onnx(random_norms(cifar_resnet(8)), SHAPE)


def real_images(folder: Path, rows: int) -> Images:
    pixels = cifar.images(folder, "test")[:rows].transpose(0, 3, 1, 2) / np.float32(255)
    mean = np.array(cifar.MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(cifar.STD, np.float32).reshape(3, 1, 1)
    return np.ascontiguousarray((pixels - mean) / std, np.float32)


def trained(folder: Path, depth: int) -> nn.Module:
    model = cifar_resnet(depth)
    model.load_state_dict(cifar.state_dict(folder, f"cifar_resnet{depth}"))
    return model.eval()


def sqnr_db(exact: Images, found: Images) -> float:
    return float(10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_int8_graph_is_close_and_smaller(
    float_graph: bytes, images: Images, calibrator: Calibrator
) -> None:
    int8 = quantize_onnx(float_graph, images[:32], Quantize(calibrator=calibrator))
    exact = run_batches(open_session(float_graph), images)
    found = run_batches(open_session(int8), images)
    assert sqnr_db(exact, found) > 15.0
    assert len(int8) < 0.5 * len(float_graph)


def test_everything_that_computes_is_integer(float_graph: bytes, images: Images) -> None:
    graph = read_graph(quantize_onnx(float_graph, images[:8], Quantize())).graph
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "Add"):
            sources = [producers[value].op_type for value in node.input]
            assert set(sources) == {"DequantizeLinear"}, node.name
    assert "Relu" not in Counter(node.op_type for node in graph.node)
    # Logits leave as the float sums they are.
    assert producers["logits"].op_type == "Gemm"


def test_bytes_are_deterministic_and_constants_are_shared(
    float_graph: bytes, images: Images
) -> None:
    first = quantize_onnx(float_graph, images[:8], Quantize())
    assert first == quantize_onnx(float_graph, images[:8], Quantize())
    tensors = read_graph(first).graph.initializer
    contents = [(t.data_type, tuple(t.dims), t.raw_data) for t in tensors]
    assert len(set(contents)) == len(contents)
    names = [node.name for node in read_graph(first).graph.node]
    assert len(set(names)) == len(names)


def test_keep_float_leaves_the_layer_alone(float_graph: bytes, images: Images) -> None:
    decision = Quantize(keep_float=("layer2.0.conv2", "linear"))
    graph = read_graph(quantize_onnx(float_graph, images[:8], decision)).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert weights["layer2.0.conv2.weight"] == 1
    assert weights["linear.weight"] == 1
    assert weights["layer2.0.conv1.weight.q"] == 3


def test_unknown_names_and_calibrators_are_refused(float_graph: bytes, images: Images) -> None:
    with pytest.raises(CompressionError, match="layer9"):
        quantize_onnx(float_graph, images[:4], Quantize(keep_float=("layer9",)))
    with pytest.raises(CompressionError, match="guess"):
        value_ranges(read_graph(float_graph), images[:4], "guess")
    with pytest.raises(CompressionError, match="at least 1 input"):
        quantize_onnx(float_graph, images[:0], Quantize())
    with pytest.raises(CompressionError, match="not finite"):
        quantize_onnx(float_graph, np.full_like(images[:4], np.nan), Quantize())
    with pytest.raises(CompressionError, match="Not an ONNX"):
        quantize_onnx(b"\xff\xff\xff", images[:4], Quantize())


def test_no_file_is_left_behind(
    float_graph: bytes, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    quantize_onnx(float_graph, images[:4], Quantize())
    node_times(float_graph, read_graph(float_graph), images[:1])
    assert list(tmp_path.iterdir()) == []


def test_minmax_ranges_are_those_of_the_values(float_graph: bytes, images: Images) -> None:
    prepared = calibrate(float_graph, images[:8], "minmax")
    exact = run_batches(open_session(float_graph), images[:8])
    assert prepared.ranges["input"] == (images[:8].min(), images[:8].max())
    np.testing.assert_allclose(prepared.ranges["logits"], (exact.min(), exact.max()), rtol=1e-4)


def test_clipping_calibrators_cut_an_outlier(float_graph: bytes, images: Images) -> None:
    spiked = images[:32].copy()
    spiked[0, 0, 0, 0] = 300.0
    prepared = calibrate(float_graph, spiked, "minmax").model
    assert value_ranges(prepared, spiked, "minmax")["input"][1] == 300.0
    assert value_ranges(prepared, spiked, "percentile")["input"][1] < 20.0
    assert value_ranges(prepared, spiked, "entropy")["input"][1] < 60.0


def damage(model: nn.Module) -> nn.Module:
    """Blow one inner channel up and shrink its readers: the same function, ruined in 8 bits."""
    block = model.get_submodule("layer2.0")
    assert isinstance(block, BasicBlock)
    with torch.no_grad():
        block.bn1.weight[3] *= 1000
        block.bn1.bias[3] *= 1000
        block.conv2.weight[:, 3] /= 1000
    return model


def test_the_ruined_value_is_the_loudest_source_of_noise(images: Images) -> None:
    torch.manual_seed(0)
    graph = export_onnx(damage(random_norms(cifar_resnet(8))), SHAPE)
    sources = noise_sources(calibrate(graph, images[:16], "minmax"), images)
    assert sources[0].cause == "values of layer2.0/Relu"
    assert sources[0].nodes == ("layer2.0.conv1", "layer2.0.conv2")
    assert sources[0].sqnr_db < sources[1].sqnr_db - 10


def test_accuracy_fall_back_repairs_with_the_fewest_layers(images: Images) -> None:
    torch.manual_seed(0)
    graph = export_onnx(damage(random_norms(cifar_resnet(8))), SHAPE)
    exact = run_batches(open_session(graph), images)

    def score(onnx: bytes) -> float:
        return sqnr_db(exact, run_batches(open_session(onnx), images))

    chosen = choose_float_layers(
        graph,
        images[:16],
        Quantize(),
        score=score,
        float_score=60.0,
        tolerance=60.0 - 22.0,
        budget=12,
    )
    assert chosen.int8_score < 22.0 <= chosen.score
    assert chosen.holds
    assert chosen.names == ("layer2.0.conv1", "layer2.0.conv2")
    assert {layer.reason for layer in chosen.layers} == {"accuracy"}
    assert chosen.onnx == quantize_onnx(graph, images[:16], Quantize(keep_float=chosen.names))
    assert chosen.evaluations <= 12


def test_budget_is_kept_and_the_best_found_is_returned(float_graph: bytes, images: Images) -> None:
    calls = []

    def score(onnx: bytes) -> float:
        calls.append(onnx)
        return -float(len(calls))  # every change makes it worse: nothing helps

    chosen = choose_float_layers(
        float_graph, images[:8], Quantize(), score=score, float_score=1.0, tolerance=0.1, budget=4
    )
    assert len(calls) == 4
    assert not chosen.holds
    assert chosen.names == ()
    assert chosen.score == -1.0


def test_nothing_stays_float_where_nothing_suffers(float_graph: bytes, images: Images) -> None:
    chosen = choose_float_layers(
        float_graph,
        images[:8],
        Quantize(),
        score=lambda onnx: 0.9,
        float_score=0.9,
        tolerance=0.0,
    )
    assert chosen.names == ()
    assert chosen.evaluations == 1


@pytest.mark.parametrize("half_width", [0.1, 0.3])
def test_speed_fall_back_keeps_a_proposal_only_if_the_whole_got_faster_for_certain(
    float_graph: bytes, images: Images, monkeypatch: pytest.MonkeyPatch, half_width: float
) -> None:
    # The clock is scripted: what is tested is the decision, not this machine's speed.
    slow_int8 = {"conv1": 9.0, "layer1.0.conv1": 3.0, "linear": 1.0}
    in_float = {"conv1": 4.0, "layer1.0.conv1": 2.0, "linear": 2.0}
    monkeypatch.setattr(
        "compression.primitives.float_layers.node_times",
        lambda onnx, graph, probe: in_float if onnx == float_graph else slow_int8,
    )

    def seconds(onnx: bytes) -> float:
        names = {tensor.name for tensor in read_graph(onnx).graph.initializer}
        gain = 2.0 if "conv1.weight" in names else 0.0
        return 10.0 - gain + (3.0 if "layer1.0.conv1.weight" in names else 0.0)

    def ratio(onnx: bytes, other: bytes) -> tuple[float, float, float]:
        value = seconds(onnx) / seconds(other)
        return value, value - half_width, value + half_width

    chosen = choose_float_layers(
        float_graph,
        images[:8],
        Quantize(),
        score=lambda onnx: 1.0,
        float_score=1.0,
        tolerance=0.0,
        ratio=ratio,
    )
    # A fifth of the time was gained: what an interval of 0.8 +- 0.3 says nothing about.
    certain = half_width < 0.2
    assert chosen.names == (("conv1",) if certain else ())
    assert [layer.reason for layer in chosen.layers] == (["speed"] if certain else [])
    assert chosen.time_ratio == pytest.approx(0.8 if certain else 1.0)


def test_profile_covers_every_layer_of_both_graphs(float_graph: bytes, images: Images) -> None:
    graph = read_graph(float_graph)
    layers = {n.name for n in graph.graph.node if n.op_type in ("Conv", "Gemm")}
    int8 = quantize_calibrated(calibrate(float_graph, images[:8], "minmax"), ())
    for data in (float_graph, int8):
        times = node_times(data, graph, images[:1])
        assert set(times) == layers
        assert min(times.values()) > 0


def test_trained_resnet_loses_nothing(real_data: Path) -> None:
    graph = export_onnx(trained(real_data, 20), SHAPE)
    x = real_images(real_data, 500)
    labels = cifar.labels(real_data, "test")[:500]
    int8 = quantize_onnx(graph, x[:64], Quantize())
    exact = (run_batches(open_session(graph), x).argmax(1) == labels).mean()
    found = (run_batches(open_session(int8), x).argmax(1) == labels).mean()
    assert found > exact - 0.015
    assert len(int8) < 310_000


@pytest.mark.slow
def test_trained_resnet56_is_much_faster_in_int8(real_data: Path) -> None:
    graph = export_onnx(trained(real_data, 56), SHAPE)
    x = real_images(real_data, 64)
    int8 = quantize_onnx(graph, x, Quantize())
    sessions = [open_session(graph), open_session(int8)]
    times: list[list[float]] = [[], []]
    for _ in range(60):
        for session, taken in zip(sessions, times, strict=True):
            for _ in range(5):
                started = time.perf_counter()
                session.run(None, {"input": x[:1]})
                taken.append(time.perf_counter() - started)
    slow, fast = (float(np.percentile(taken, 20)) for taken in times)
    assert slow / fast > 1.6
    assert len(int8) < 1_000_000
