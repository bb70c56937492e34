"""Equalization changes ranges and not the function; bias correction restores means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from compression.decisions import Quantize
from compression.export import export_onnx
from compression.onnx_graph import read_graph, write_graph
from compression.onnx_session import open_session, run_batches
from compression.primitives.bias_correction import correct_biases, output_means
from compression.primitives.equalize import equalizable, equalize, equalizing_scales
from compression.primitives.float_layers import choose_float_layers
from compression.primitives.quantize import calibrate, quantize_calibrated, quantize_onnx
from tests.builders import SHAPE, ConcatNet, FlattenVgg, MobileNet, SharedNet, seeded


class Chain(nn.Module):
    """Plain, depthwise, grouped and strided convolutions, and linear layers, in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.slope = nn.PReLU(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=2)
        self.last = nn.Conv2d(12, 6, 1)
        self.hidden = nn.Linear(6, 9)
        self.classifier = nn.Linear(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.plain(x))
        out = self.slope(self.depthwise(out))
        out = functional.leaky_relu(self.grouped(functional.max_pool2d(out, 2)))
        out = self.last(out).mean((2, 3))
        logits: Tensor = self.classifier(functional.relu(self.hidden(out)))
        return logits


def images(rows: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, *SHAPE), dtype=np.float32)


def run(graph: bytes) -> np.ndarray:
    return run_batches(open_session(graph, optimize=False), images())


@pytest.mark.parametrize("build", [Chain, FlattenVgg, MobileNet, ConcatNet, SharedNet])
def test_the_function_is_unchanged(build: Callable[[], nn.Module]) -> None:
    graph = export_onnx(seeded(build), SHAPE)
    before, after = run(graph), run(write_graph(equalize(read_graph(graph))))
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


def test_which_layers_make_pairs() -> None:
    def names(build: Callable[[], nn.Module]) -> list[tuple[str, str]]:
        pairs = equalizable(read_graph(export_onnx(seeded(build), SHAPE)))
        return [(pair.first.name, pair.second.name) for pair in pairs]

    assert names(Chain) == [
        ("plain", "depthwise"),
        ("depthwise", "grouped"),
        ("grouped", "last"),
        ("hidden", "classifier"),
    ]
    # ReLU6 clips; a value with two readers and a layer used twice cannot be scaled.
    clipped = names(MobileNet)
    assert all("expand" not in first and "depthwise" not in first for first, _ in clipped)
    assert ("blocks.0.squeeze", "blocks.0.excite") in clipped
    assert names(ConcatNet) == []
    assert names(SharedNet) == [("inner", "outer")]


def test_scales_in_closed_form() -> None:
    first, second = np.array([8.0, 1.0, 0.0, 2.0]), np.array([2.0, 4.0, 3.0, 0.0])
    assert equalizing_scales(first, second).tolist() == [2.0, 0.5, 1.0, 1.0]


def test_ranges_meet_in_the_geometric_mean() -> None:
    graph = read_graph(export_onnx(seeded(SharedNet), SHAPE))

    def ranges(model: object) -> tuple[np.ndarray, np.ndarray]:
        tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}  # type: ignore[attr-defined]
        made = np.abs(tensors["inner.weight"]).max((1, 2, 3))
        return made, np.abs(tensors["outer.weight"]).max((0, 2, 3))

    made, read = ranges(graph)
    now, then = ranges(equalize(graph))
    np.testing.assert_allclose(now, np.sqrt(made * read), rtol=1e-5)
    np.testing.assert_allclose(then, np.sqrt(made * read), rtol=1e-5)


def ruined() -> nn.Module:
    """One channel a thousand times as large, its reader as small: the same function."""
    model = seeded(Chain)
    plain, depthwise = model.get_submodule("plain"), model.get_submodule("depthwise")
    assert isinstance(plain, nn.Conv2d)
    assert isinstance(depthwise, nn.Conv2d)
    assert plain.bias is not None
    plain.weight.data[3] *= 1000
    plain.bias.data[3] *= 1000
    depthwise.weight.data[3] /= 1000
    return model


def noise(graph: bytes, decision: Quantize) -> float:
    exact = run(graph)
    found = run_batches(open_session(quantize_onnx(graph, images(), decision)), images())
    return float(np.square(found - exact).sum() / np.square(exact).sum())


def test_equalization_repairs_a_ruined_channel() -> None:
    graph = export_onnx(ruined(), SHAPE)
    assert noise(graph, Quantize(equalize=True)) < 0.2 * noise(graph, Quantize())


@pytest.mark.parametrize("keep", [(), ("grouped",)])
def test_corrected_means_are_those_of_the_float_graph(keep: tuple[str, ...]) -> None:
    prepared = calibrate(export_onnx(ruined(), SHAPE), images(), "minmax")
    before = read_graph(quantize_calibrated(prepared, keep))
    after = correct_biases(before, prepared.model, images())
    wanted = output_means(prepared.model, images())
    old, new = (output_means(graph, images()) for graph in (before, after))
    worse = 0.0
    for name in ("plain", "grouped", "last", "hidden", "classifier"):
        error, was = np.abs(new[name] - wanted[name]).max(), np.abs(old[name] - wanted[name]).max()
        scale = np.abs(wanted[name]).max()
        assert error < 2e-3 * scale, name
        worse = max(worse, was / scale)
    assert worse > 4e-3


def test_all_repairs_together_keep_float_layers_and_repeat_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = export_onnx(ruined(), SHAPE)
    decision = Quantize(
        calibrator="mse",
        equalize=True,
        bias_correction=True,
        rounding="adaround",
        keep_float=("last",),
    )
    monkeypatch.setattr("compression.primitives.adaround._STEPS", 40)
    first = quantize_onnx(graph, images(), decision)
    assert first == quantize_onnx(graph, images(), decision)
    found = run_batches(open_session(first), images())
    error = np.square(found - run(graph)).sum() / np.square(run(graph)).sum()
    assert error < 0.2 * noise(graph, Quantize())
    kinds = {tensor.name: tensor.data_type for tensor in read_graph(first).graph.initializer}
    assert kinds["last.weight"] == 1
    assert kinds["grouped.weight.q"] == 3


def test_the_choice_of_float_layers_uses_the_whole_decision() -> None:
    graph = export_onnx(ruined(), SHAPE)
    decision = Quantize(equalize=True, bias_correction=True)
    chosen = choose_float_layers(
        graph, images(), decision, score=lambda onnx: 1.0, float_score=1.0, tolerance=0.0
    )
    assert chosen.onnx == quantize_onnx(graph, images(), decision)
