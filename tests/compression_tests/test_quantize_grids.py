"""Integer grids of weights, ranges of values, and graphs computed node by node."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from compression.export import export_onnx
from compression.onnx_graph import read_graph
from compression.onnx_session import open_session, run_batches
from compression.primitives import calibrate as calibration
from compression.primitives.node_walk import NodeWalk
from compression.primitives.quantize import calibrate, quantize_calibrated
from compression.primitives.weight_grid import (
    found_grid,
    grid_scales,
    round_weight,
    weighted_nodes,
)
from tests.builders import SHAPE, ConcatNet, FlattenVgg, MobileNet, SharedNet, seeded


def inputs(rows: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, *SHAPE), dtype=np.float32)


def test_scales_and_integers_in_closed_form() -> None:
    weight = np.array([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0], [-254.0, 2.0, 1.0]], np.float32)
    grid = round_weight(weight, 0)
    np.testing.assert_allclose(grid.scales, [0.01, 1.0, 2.0], rtol=1e-6)
    assert grid.integers.tolist() == [[127, -50, 0], [0, 0, 0], [-127, 1, 0]]
    across = round_weight(weight.T.copy(), 1)
    assert (grid.integers == across.integers.T).all()


def test_few_bits_clip_what_would_cost_the_many() -> None:
    weight = np.random.default_rng(1).laplace(size=(4, 900)).astype(np.float32)
    largest = np.abs(weight).max(1) / 7
    scales = grid_scales(weight, 0, 4)
    assert (scales < largest).all()

    def error(scales: np.ndarray) -> np.ndarray:
        found = round_weight(weight, 0, 4, scales).values
        return np.asarray(np.square(found - weight).sum(1))

    assert (error(scales) < 0.8 * error(largest.astype(np.float32))).all()


@given(st.integers(1, 63), st.integers(0, 2**31), st.sampled_from([0, 1]))
def test_weights_on_a_grid_are_found_again(top: int, seed: int, axis: int) -> None:
    rng = np.random.default_rng(seed)
    integers = rng.integers(-top, top, (5, 40), endpoint=True)
    integers[:, 0] = top
    scales = rng.uniform(0.001, 30.0, (5, 1))
    weight = (integers * scales).astype(np.float32)
    grid = found_grid(weight if axis == 0 else weight.T.copy(), axis)
    assert grid is not None
    found = grid.values if axis == 0 else grid.values.T
    np.testing.assert_allclose(found, weight, rtol=1e-5)
    assert len(np.unique(grid.integers)) <= 2 * top + 1


def test_ordinary_weights_lie_on_no_grid() -> None:
    weight = np.random.default_rng(2).standard_normal((6, 9)).astype(np.float32)
    assert found_grid(weight, 0) is None
    weight[3] = 0.0
    assert found_grid(weight, 0) is None


def test_few_bits_survive_into_the_integer_graph() -> None:
    graph = read_graph(export_onnx(seeded(FlattenVgg), SHAPE))
    (layer,) = [n for n in weighted_nodes(graph) if n.node.name == "features.4"]
    rounded = round_weight(layer.values, layer.axis, 4)
    for tensor in graph.graph.initializer:
        if tensor.name == layer.weight:
            tensor.CopyFrom(numpy_helper.from_array(rounded.values, tensor.name))
    prepared = calibrate(graph.SerializeToString(), inputs(), "minmax")
    assert list(prepared.weights) == [layer.weight]
    tensors = {
        t.name: numpy_helper.to_array(t)
        for t in read_graph(quantize_calibrated(prepared, ())).graph.initializer
    }
    stored = tensors[f"{layer.weight}.q"]
    assert stored.dtype == np.int8
    assert len(np.unique(stored)) <= 15
    values = stored * tensors[f"{layer.weight}.s"].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(values, rounded.values, rtol=1e-5, atol=1e-7)


def test_the_graph_holds_exactly_the_integers_asked_for() -> None:
    prepared = calibrate(export_onnx(seeded(ConcatNet), SHAPE), inputs(), "minmax")
    rng = np.random.default_rng(3)
    weights = {}
    for node in weighted_nodes(prepared.model):
        grid = round_weight(node.values, node.axis)
        shift = rng.integers(-1, 1, grid.integers.shape, np.int8, endpoint=True)
        moved = np.clip(grid.integers.astype(np.int16) + shift, -127, 127).astype(np.int8)
        weights[node.weight] = dataclasses.replace(grid, integers=moved)
    quantized = read_graph(quantize_calibrated(dataclasses.replace(prepared, weights=weights), ()))
    stored = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    for name, grid in weights.items():
        assert (stored[f"{name}.q"] == grid.integers).all(), name


def test_a_layer_that_stays_float_keeps_its_unrounded_weights() -> None:
    prepared = calibrate(export_onnx(seeded(ConcatNet), SHAPE), inputs(), "minmax")
    nodes = {node.node.name: node for node in weighted_nodes(prepared.model)}
    merge = nodes["merge"]
    weights = {merge.weight: round_weight(merge.values, merge.axis, 2)}
    calibrated = dataclasses.replace(prepared, weights=weights)
    graph = read_graph(quantize_calibrated(calibrated, ("merge",))).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    assert (stored[merge.weight] == merge.values).all()


@pytest.mark.parametrize("build", [FlattenVgg, MobileNet, ConcatNet, SharedNet])
def test_node_by_node_is_the_whole_graph(build: type) -> None:
    graph = export_onnx(seeded(build), SHAPE)
    walk = NodeWalk(read_graph(graph), inputs())
    output = None
    for node in walk:
        if "logits" in node.output:
            output = walk.values["logits"].copy()
        assert len(walk.values) < 8
    assert output is not None
    np.testing.assert_allclose(
        output, run_batches(open_session(graph, optimize=False), inputs()), rtol=1e-4, atol=1e-5
    )


def test_a_changed_value_is_seen_downstream() -> None:
    graph = export_onnx(seeded(ConcatNet), SHAPE)
    walk = NodeWalk(read_graph(graph), inputs(2))
    last = None
    for node in walk:
        if node.op_type == "Gemm":
            walk.weights[node.input[2]] = walk.weights[node.input[2]] + np.float32(1.0)
            before = walk.values[node.output[0]]
            walk.compute(node)
            last = walk.values[node.output[0]] - before
    assert last is not None
    np.testing.assert_allclose(last, 1.0, atol=1e-4)


def histogram(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    low, high = float(values.min()), float(values.max())
    bins = calibration._BINS
    index = ((values - low) * ((bins - 1) / (high - low))).astype(np.int64)
    return np.bincount(index, minlength=bins), low, high


def uint8_error(values: np.ndarray, bounds: tuple[float, float]) -> float:
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(values / scale + zero), 0, 255) - zero) * scale
    return float(np.square(rounded - values).mean())


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "spiked", "student"])
def test_mse_range_is_near_the_best_and_never_worse_than_all(kind: str) -> None:
    rng = np.random.default_rng(4)
    values = {
        "normal": rng.standard_normal(60000),
        "laplace": rng.laplace(size=60000),
        "relu": np.maximum(rng.laplace(size=60000), 0),
        "spiked": np.append(rng.standard_normal(60000), [60.0, -2.0]),
        "student": rng.standard_t(4, 60000),
    }[kind]
    counts, low, high = histogram(values)
    found = calibration._mse_range(counts, low, high)
    assert low <= found[0] <= 0.0 < found[1] <= high
    error = uint8_error(values, found)
    assert error <= 1.02 * uint8_error(values, (low, high))
    tried = [
        uint8_error(values, (low * a, high * b))
        for a in np.linspace(0.05, 1, 20)
        for b in np.linspace(0.05, 1, 20)
    ]
    assert error <= 1.1 * min(tried)


def test_entropy_is_the_divergence_of_the_histogram_from_its_levels() -> None:
    # 8 bins kept as 4 levels of two bins: P = p, Q = the mean over each pair where p > 0.
    counts = np.array([4.0, 2.0, 3.0, 0.0, 5.0, 1.0, 2.0, 2.0, 6.0])
    p = np.array([4.0, 2.0, 3.0, 0.0, 5.0, 1.0, 2.0, 8.0])
    q = np.array([3.0, 3.0, 3.0, 0.0, 3.0, 3.0, 2.0, 2.0])
    p, q = (p + 1e-4) / (p + 1e-4).sum(), (q + 1e-4) / (q + 1e-4).sum()
    expected = float((p * np.log(p / q)).sum())
    assert calibration._divergence(counts, 8, 4) == pytest.approx(expected)
    even = np.full(64, 5.0)
    assert calibration._divergence(even, 64, 16) == pytest.approx(0.0, abs=1e-12)
