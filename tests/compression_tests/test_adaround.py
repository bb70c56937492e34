"""Learned rounding, and layers with few bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from compression.decisions import Quantize, QuantizeWeights
from compression.errors import CompressionError
from compression.export import export_onnx
from compression.onnx_graph import read_graph
from compression.onnx_session import open_session, run_batches
from compression.primitives.adaround import adapt, learn_rounding, output_error, second_moments
from compression.primitives.mixed_bits import choose_low_bit_layers, low_bit_order
from compression.primitives.node_walk import NodeWalk
from compression.primitives.quantize import calibrate, quantize_calibrated
from compression.primitives.weight_grid import GridWeight, round_weight, weighted_nodes
from tests import cifar
from tests.builders import SHAPE, FlattenVgg, MobileNet, SharedNet, seeded
from tests.compression_tests.test_equalize import Chain
from tests.compression_tests.test_quantize import real_images, trained


def images(rows: int = 32) -> NDArray[np.float32]:
    """Neighbouring pixels are alike, as in pictures: rounding errors can cancel."""
    noise = np.random.default_rng(0).standard_normal((rows, *SHAPE))
    for axis in (2, 3):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    return noise.astype(np.float32) / np.float32(4)


def outputs(model: object, weights: dict[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """Return every layer's output on exact inputs, with that layer's weights replaced."""
    walk = NodeWalk(model, images())  # type: ignore[arg-type]
    found = {}
    for node in walk:
        if len(node.input) > 1 and node.input[1] in weights:
            exact, kept = walk.values[node.output[0]], walk.weights[node.input[1]]
            walk.weights[node.input[1]] = weights[node.input[1]]
            walk.compute(node)
            found[node.name] = torch.from_numpy(np.array(walk.values[node.output[0]], np.float32))
            walk.weights[node.input[1]], walk.values[node.output[0]] = kept, exact
    return found


def test_moments_give_the_error_of_a_layers_outputs() -> None:
    graph = calibrate(export_onnx(seeded(Chain), SHAPE), images(), "minmax").model
    walk = NodeWalk(graph, images())
    layers = {layer.node.name: layer for layer in weighted_nodes(graph)}
    assert list(layers) == ["plain", "depthwise", "grouped", "last", "hidden", "classifier"]
    rounded = {n: round_weight(layer.values, layer.axis, 3) for n, layer in layers.items()}
    spoiled = outputs(graph, {layers[n].weight: grid.values for n, grid in rounded.items()})
    for node in walk:
        if node.name not in layers:
            continue
        layer = layers[node.name]
        x = torch.from_numpy(np.array(walk.values[node.input[0]], np.float32))
        own, cross = second_moments(layer, x, x, torch.Generator().manual_seed(0))

        def rows(values: NDArray[np.float32], layer=layer, own=own) -> torch.Tensor:  # type: ignore[no-untyped-def]
            by_output = np.moveaxis(values, layer.axis, 0)
            return torch.from_numpy(by_output.copy()).reshape(len(own), -1, own.shape[1])

        weight, other = rows(layer.values), rows(rounded[node.name].values)
        found = output_error(weight, other, own, cross) - output_error(weight, weight, own, cross)
        y = torch.from_numpy(np.array(walk.values[node.output[0]], np.float32))
        others = tuple(axis for axis in range(y.ndim) if axis != 1)
        expected = (spoiled[node.name] - y).square().mean(others)
        torch.testing.assert_close(found.flatten(), expected, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_every_layer_is_at_least_as_good_as_nearest(bits: int) -> None:
    graph = calibrate(export_onnx(seeded(FlattenVgg), SHAPE), images(), "minmax").model
    walk = NodeWalk(graph, images())
    layers = {layer.node.name: layer for layer in weighted_nodes(graph)}
    gains = []
    for node in walk:
        if node.name in layers:
            layer = layers[node.name]
            x = torch.from_numpy(np.array(walk.values[node.input[0]], np.float32))
            own, cross = second_moments(layer, x, x, torch.Generator().manual_seed(0))
            learned = adapt(layer, own, cross, bits=bits)
            nearest = round_weight(layer.values, layer.axis, bits)
            assert (learned.scales == nearest.scales).all()
            assert np.abs(learned.integers.astype(int) - nearest.integers).max() <= 1

            def error(grid: GridWeight, layer=layer, own=own) -> float:  # type: ignore[no-untyped-def]
                by_output = np.moveaxis(grid.values - layer.values, layer.axis, 0)
                noise = torch.from_numpy(by_output.copy()).reshape(len(own), -1, own.shape[1])
                return float(((noise @ own) * noise).sum())

            gains.append(error(learned) / error(nearest))
    assert max(gains) <= 1.0 + 1e-6
    assert min(gains) < 0.7


def test_the_deployed_graph_is_nearer_to_the_float_one() -> None:
    data = export_onnx(seeded(Chain), SHAPE)
    prepared = calibrate(data, images(), "minmax")
    bits = {layer.node.name: 4 for layer in weighted_nodes(prepared.model)}
    learned = learn_rounding(prepared.model, images(), bits=bits)
    nearest = {
        layer.weight: round_weight(layer.values, layer.axis, 4)
        for layer in weighted_nodes(prepared.model)
    }
    exact = run_batches(open_session(data), images())
    noise = []
    for weights in (learned, nearest):
        graph = quantize_calibrated(dataclasses.replace(prepared, weights=weights), ())
        noise.append(np.square(run_batches(open_session(graph), images()) - exact).sum())
    assert noise[0] < 0.8 * noise[1]


def test_layers_used_twice_and_odd_ones_are_rounded_to_the_nearest() -> None:
    model = calibrate(export_onnx(seeded(SharedNet), SHAPE), images(), "minmax").model
    learned = learn_rounding(model, images(8), keep_float=("stem",))
    layers = {layer.node.name: layer for layer in weighted_nodes(model)}
    again = layers["again"]
    assert (learned[again.weight].integers == round_weight(again.values, 0).integers).all()
    assert layers["stem"].weight not in learned
    assert len(learned) == len({layer.weight for layer in layers.values()}) - 1


def test_equal_seeds_give_equal_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.primitives.adaround._STEPS", 10)
    model = calibrate(export_onnx(seeded(MobileNet), SHAPE), images(), "minmax").model
    first, second = (learn_rounding(model, images(8), seed=3) for _ in range(2))
    for name, grid in first.items():
        assert (grid.integers == second[name].integers).all()


def test_fewest_damage_per_bit_comes_first_and_the_ends_keep_eight_bits() -> None:
    prepared = calibrate(export_onnx(seeded(Chain), SHAPE), images(), "minmax")
    order = low_bit_order(prepared, images(), 4, keep_float=("last",))
    assert {layer.name for layer in order} == {"depthwise", "grouped", "hidden"}
    assert [layer.damage for layer in order] == sorted(layer.damage for layer in order)
    grouped = next(layer for layer in order if layer.name == "grouped")
    assert grouped.saved_bits == 4 * 12 * 4 * 9
    fewer = low_bit_order(prepared, images(), 3)
    assert all(
        next(x for x in fewer if x.name == layer.name).noise_ratio > layer.noise_ratio
        for layer in order
    )


def test_low_bit_layers_are_the_longest_head_that_holds() -> None:
    data = export_onnx(seeded(Chain), SHAPE)

    def score(onnx: bytes) -> float:
        model = read_graph(onnx)
        few = [t for t in model.graph.initializer if t.name.endswith("weight.q") and small(t)]
        return -float(len(few))

    def small(tensor: object) -> bool:
        return bool(np.abs(numpy_helper.to_array(tensor).astype(int)).max() <= 7)  # type: ignore[arg-type]

    found = choose_low_bit_layers(
        data, images(), Quantize(), score=score, float_score=0.0, tolerance=2.0
    )
    order = low_bit_order(calibrate(data, images(), "minmax"), images(), 4)
    assert found.layers == tuple(order[:2])
    assert (found.holds, found.score, found.int8_score) == (True, -2.0, 0.0)
    assert found.decisions == {layer.name: QuantizeWeights(bits=4) for layer in order[:2]}
    everything = choose_low_bit_layers(
        data, images(), Quantize(), score=score, float_score=0.0, tolerance=9.0
    )
    assert len(everything.layers) == len(order)
    assert everything.evaluations == 2
    nothing = choose_low_bit_layers(
        data, images(), Quantize(), score=score, float_score=0.0, tolerance=0.0
    )
    assert nothing.layers == ()
    assert nothing.holds
    with pytest.raises(CompressionError, match="bits 8"):
        choose_low_bit_layers(
            data, images(), Quantize(), score=score, float_score=0.0, tolerance=0.0, bits=8
        )


@pytest.mark.slow
def test_four_bits_of_a_trained_resnet(real_data: Path) -> None:
    data = export_onnx(trained(real_data, 20), (3, 32, 32))
    x = real_images(real_data, 400)
    prepared = calibrate(data, x[:64], "mse")
    inner = weighted_nodes(prepared.model)[1:-1]
    nearest = {n.weight: round_weight(n.values, n.axis, 4) for n in inner}
    learned = learn_rounding(prepared.model, x[:64], bits={n.node.name: 4 for n in inner})
    exact = run_batches(open_session(data), x)
    noise = []
    for weights in (nearest, learned):
        graph = quantize_calibrated(dataclasses.replace(prepared, weights=weights), ())
        found = run_batches(open_session(graph), x)
        noise.append(np.square(found - exact).sum() / np.square(exact).sum())
    labels = cifar.labels(real_data, "test")[:400]
    assert noise[1] < 0.3 * noise[0]
    assert (found.argmax(1) == labels).mean() > (exact.argmax(1) == labels).mean() - 0.02
