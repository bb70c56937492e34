"""Training that sees the rounding of the deployed graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.artifact import Preprocessing
from compression.backend import FLOAT32, Backend
from compression.errors import CompressionError
from compression.export import export_onnx
from compression.onnx_session import open_session, run_batches
from compression.primitives.quantize import calibrate, quantize_calibrated
from compression.recover.fake_quant import FakeQuant, round_weight, weight_scales
from compression.recover.training import Recipe, TrainingData, train
from tests.builders import SHAPE, ConcatNet, FlattenVgg, MobileNet, SharedNet, seeded


def batch(rows: int = 16) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rounding() -> Iterator[Callable[[nn.Module, FakeQuant], nn.Module]]:
    """Start a hook that rounds from the first step on."""
    started: list[tuple[nn.Module, FakeQuant]] = []

    def start(model: nn.Module, hook: FakeQuant) -> nn.Module:
        hook.start(model, 10)
        started.append((model, hook))
        return model

    yield start
    for model, hook in started:
        hook.finish(model)


def test_weights_in_closed_form_and_straight_through() -> None:
    weight = torch.tensor([[1.27, -0.504, 0.004], [-2.54, 0.11, 0.0]], requires_grad=True)
    scales = weight_scales(weight, 8)
    torch.testing.assert_close(scales, torch.tensor([0.01, 0.02]))
    rounded = round_weight(weight, scales, 8)
    torch.testing.assert_close(rounded, torch.tensor([[1.27, -0.5, 0.0], [-2.54, 0.12, 0.0]]))
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0] * 3] * 2


def test_few_bits_have_few_values_and_less_error_than_the_full_range() -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    scales = weight_scales(weight, 4)
    rounded = round_weight(weight, scales, 4)
    assert all(len(row.unique()) <= 15 for row in rounded)
    full = round_weight(weight, weight.abs().amax(1) / 7, 4)
    assert ((rounded - weight).square().sum(1) < (full - weight).square().sum(1)).all()


def test_rounding_commutes_with_folding() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    factor = torch.tensor([0.5, 3.0, -2.0, 1.0, 7.0, -0.1])[:, None]
    for bits in (8, 4):
        folded = weight * factor
        torch.testing.assert_close(
            round_weight(folded, weight_scales(folded, bits), bits),
            round_weight(weight, weight_scales(weight, bits), bits) * factor,
        )


@pytest.mark.parametrize("build", [FlattenVgg, ConcatNet, MobileNet, SharedNet])
def test_the_training_sees_what_is_deployed(
    build: Callable[[], nn.Module], rounding: Callable[[nn.Module, FakeQuant], nn.Module]
) -> None:
    model, x = seeded(build), batch()
    graph = export_onnx(model, SHAPE)
    int8 = quantize_calibrated(calibrate(graph, x.numpy(), "minmax"), ())
    deployed = torch.from_numpy(run_batches(open_session(int8), x.numpy()))
    with torch.no_grad():
        exact = model(x)
        seen = rounding(model, FakeQuant(warm_up=0.0))(x)
    damage = float((deployed - exact).square().mean())
    assert float((seen - exact).square().mean()) == pytest.approx(damage, rel=0.6)
    assert float((seen - deployed).square().mean()) < 0.8 * damage


def test_gradients_flow_and_ranges_follow_only_training(
    rounding: Callable[[nn.Module, FakeQuant], nn.Module],
) -> None:
    hook = FakeQuant(warm_up=0.0, momentum=0.5)
    model = rounding(seeded(FlattenVgg), hook).train()
    model(batch()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    low, high = (float(bound) for bound in hook._mode._ranges["features.0", 0])
    assert (low, high) == pytest.approx((float(batch().min()), float(batch().max())))
    model.eval()(batch() * 10)
    assert float(hook._mode._ranges["features.0", 0][1]) == high
    model.train()(batch() * 3)
    assert float(hook._mode._ranges["features.0", 0][1]) == pytest.approx(2 * high)


def test_nothing_is_rounded_in_the_warm_up_or_after_the_end() -> None:
    model, x = seeded(ConcatNet), batch()
    with torch.no_grad():
        exact = model(x)
        hook = FakeQuant(warm_up=0.5)
        hook.start(model, 4)
        seen = []
        for step in range(4):
            seen.append(model(x))
            hook.after_step(model, step)
        hook.finish(model)
        after = model(x)
    assert [bool((y == exact).all()) for y in seen] == [True, True, False, False]
    assert bool((after == exact).all())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all("parametrizations" not in name for name in model.state_dict())


def test_float_layers_and_single_bits(
    rounding: Callable[[nn.Module, FakeQuant], nn.Module],
) -> None:
    x = batch()
    names = ("stem", "left", "right", "merge", "classifier")
    with torch.no_grad():
        exact = seeded(ConcatNet)(x)
        errors = []
        for hook in (
            FakeQuant(warm_up=0.0),
            FakeQuant(warm_up=0.0, layer_bits={"merge": 2}),
            FakeQuant(warm_up=0.0, keep_float=names),
        ):
            out = rounding(seeded(ConcatNet), hook)(x)
            errors.append(float((out - exact).square().mean()))
    assert errors[1] > 10 * errors[0]
    assert errors[2] < errors[0]  # what is left is the concatenation


def test_a_failed_pass_leaves_the_mode() -> None:
    model = seeded(FlattenVgg)
    hook = FakeQuant(warm_up=0.0)
    hook.start(model, 2)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 5, 16, 16))
    before = torch.nn.functional.linear(torch.tensor([[0.1234567]]), torch.tensor([[1.0]]))
    assert float(before) == pytest.approx(0.1234567, rel=1e-6)
    hook.finish(model)


def test_odd_arguments_are_refused() -> None:
    with pytest.raises(CompressionError, match="weight_bits is 9"):
        FakeQuant(weight_bits=9)
    with pytest.raises(CompressionError, match="layer_bits of stem is 1"):
        FakeQuant(layer_bits={"stem": 1})
    with pytest.raises(CompressionError, match="warm_up is 1"):
        FakeQuant(warm_up=1.0)
    with pytest.raises(CompressionError, match="layer9"):
        FakeQuant(keep_float=("layer9",)).start(seeded(ConcatNet), 1)


def deployed_error(model: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    """Return the error against the teacher with all inner weights in 3 bits."""
    copied = copy.deepcopy(model)
    for name, layer in copied.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name not in ("features.0", "classifier"):
            scales = weight_scales(layer.weight, 3)
            layer.weight.data = round_weight(layer.weight.data, scales, 3)
    with torch.no_grad():
        return float((copied.eval()(x) - teacher(x)).square().mean())


@pytest.mark.parametrize("backend", [FLOAT32, Backend(channels_last=True, bf16=True)])
def test_training_with_rounding_prepares_for_it(backend: Backend) -> None:
    teacher = seeded(FlattenVgg)
    images = np.random.default_rng(0).standard_normal((64, *SHAPE)).astype(np.float32)
    data = TrainingData(images=images, labels=None, preprocessing=Preprocessing())
    bits = {"features.0": 8, "classifier": 8}
    found = {}
    for name, hooks in (("aware", [FakeQuant(weight_bits=3, layer_bits=bits)]), ("not", [])):
        student = copy.deepcopy(teacher)
        train(
            student,
            data,
            Recipe(steps=30, learning_rate=0.005, batch_size=32, augment=False),
            teacher=copy.deepcopy(teacher),
            generator=torch.Generator().manual_seed(0),
            backend=backend,
            progress=lambda report: None,
            breathe=lambda: None,
            hooks=hooks,
        )
        found[name] = deployed_error(student, teacher, torch.from_numpy(images))
    assert found["aware"] < 0.9 * found["not"]
