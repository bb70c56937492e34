"""Masks hold exactly what they were asked for, and training under them keeps to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression.backend import Backend
from compression.errors import CompressionError
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.recover.gradual_sparsity import GradualSparsity, cubic_sparsity, ramp_steps_of
from compression.recover.hook import Hook
from compression.recover.masks import (
    KeepMasks,
    global_masks,
    n_of_m_mask,
    planned_zeros,
    trained_weight,
    without_smallest,
    zeros_of,
)
from compression.recover.splicing import Splicing, renewal_chance, spliced
from compression.recover.training import Curve, Recipe, TrainingData, train

pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(count: int = 256) -> TrainingData:
    """Images of 8 x 8 pixels with one bright row; the row is the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, count)
    images = rng.integers(0, 6, (count, 1, 8, 8)).astype(np.uint8)
    images[np.arange(count), 0, labels] += 9
    return TrainingData(
        images=images, labels=labels.astype(np.int64), preprocessing=DIGITS_PREPROCESSING
    )


def stripes_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 8),
        )


LAYERS = ("3", "6")
SIZES = {"3": 576, "6": 1024}


def fit(model: nn.Module, hooks: Sequence[Hook], steps: int = 60, **layout: bool) -> Curve:
    return train(
        model,
        stripes(),
        Recipe(steps=steps, batch_size=32, augment=False, learning_rate=0.05),
        teacher=None,
        generator=torch.Generator().manual_seed(0),
        backend=Backend(**layout),
        progress=lambda _: None,
        breathe=lambda: None,
        hooks=hooks,
    )


def fell(curve: Curve) -> bool:
    return curve.points[-1][1] < 0.6 * curve.points[0][1]


def of(model: nn.Module, layer: str) -> Tensor:
    return trained_weight(model, layer).detach()


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=24)


@given(SCORES, st.data())
@settings(max_examples=60, deadline=None)
def test_exactly_the_smallest_are_left_out(values: list[float], data: st.DataObject) -> None:
    scores = torch.tensor(values)
    zeros = data.draw(st.integers(0, len(values)))
    mask = without_smallest(scores, zeros)
    assert int((~mask).sum()) == zeros
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[:zeros]
    assert (~mask).nonzero().view(-1).tolist() == sorted(expected)


def test_a_global_mask_is_one_threshold() -> None:
    scores = {"a": torch.tensor([[5.0, 1.0], [4.0, 2.0]]), "b": torch.tensor([3.0, 9.0])}
    masks = global_masks(scores, 3)
    assert masks["a"].tolist() == [[True, False], [True, False]]
    assert masks["b"].tolist() == [False, True]


def test_whole_numbers_of_zeros() -> None:
    assert planned_zeros(10, 0.25) == 2
    assert planned_zeros(1000, 0.7) == 700
    assert planned_zeros(4, 0.99) == 3


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_n_of_m_keeps_the_greatest_of_every_group(n: int, m: int, rows: int, seed: int) -> None:
    n = min(n, m - 1)
    scores = torch.rand(rows, 2, 7, generator=torch.Generator().manual_seed(seed))
    mask = n_of_m_mask(scores, n, m).reshape(rows, 14)
    flat = scores.reshape(rows, 14)
    for row in range(rows):
        for left in range(0, 14 // m * m, m):
            kept = mask[row, left : left + m]
            assert int(kept.sum()) == n
            assert flat[row, left : left + m][kept].min() > flat[row, left : left + m][~kept].max()
    assert bool(mask[:, 14 // m * m :].all())


def test_masks_do_not_depend_on_memory_order() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    other = weight.to(memory_format=torch.channels_last)
    assert torch.equal(without_smallest(weight.abs(), 70), without_smallest(other.abs(), 70))
    assert torch.equal(n_of_m_mask(weight.abs(), 2, 4), n_of_m_mask(other.abs(), 2, 4))
    turned = torch.arange(12.0).reshape(3, 4).t()
    assert int((~without_smallest(turned, 5)).sum()) == 5


@pytest.mark.parametrize("layout", [{}, {"channels_last": True}])
def test_training_keeps_masks(layout: Mapping[str, bool]) -> None:
    model = stripes_net()
    masks = {layer: without_smallest(of(model, layer).abs(), SIZES[layer] // 2) for layer in LAYERS}
    curve = fit(model, [KeepMasks(masks)], **layout)
    assert fell(curve)
    for layer, mask in masks.items():
        assert int((of(model, layer) == 0).sum()) == SIZES[layer] // 2
        assert bool((of(model, layer)[~mask] == 0).all())
    assert zeros_of(model, LAYERS) == 800


def test_gradients_outside_are_gone_before_they_are_clipped() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    mask = torch.tensor([[True, False], [False, True]])
    hook = KeepMasks({"0": mask})
    hook.start(model, 1)
    of(model, "0")
    trained_weight(model, "0").grad = torch.ones(2, 2)
    hook.gradients(model, 0)
    gradient = trained_weight(model, "0").grad
    assert gradient is not None
    assert gradient.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_what_is_outside_becomes_zero_even_if_it_was_not_finite() -> None:
    model = nn.Sequential(nn.Linear(1, 2))
    with torch.no_grad():
        trained_weight(model, "0").copy_(torch.tensor([[float("inf")], [-1.0]]))
    KeepMasks({"0": torch.tensor([[False], [False]])}).finish(model)
    assert str(of(model, "0").tolist()) == "[[0.0], [0.0]]"


def test_the_source_of_a_parametrization_is_masked() -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    model = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(model[0], "weight", Halved())
    mask = torch.eye(3, dtype=torch.bool)
    KeepMasks({"0": mask}).start(model, 1)
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(of(model, "0") != 0, mask)


def test_refusals() -> None:
    model = stripes_net()
    with pytest.raises(CompressionError, match="Layer 'gone' is not in the model"):
        KeepMasks({"gone": torch.ones(1, dtype=torch.bool)}).start(model, 1)
    with pytest.raises(CompressionError, match=r"Layer '3' has a weight of \(8, 8, 3, 3\)"):
        KeepMasks({"3": torch.ones(1, dtype=torch.bool)}).start(model, 1)
    with pytest.raises(CompressionError, match="Layer '2' has no weight"):
        trained_weight(model, "2")
    with pytest.raises(CompressionError, match="Layer '3' has 576 weights; 576 zeros"):
        GradualSparsity({"3": 576}).start(model, 1)
    with pytest.raises(CompressionError, match="Layer '6' has 1024 weights; -1 zeros"):
        Splicing({"6": -1}).start(model, 1)
    with pytest.raises(CompressionError, match="every is 0 steps"):
        GradualSparsity({}, every=0)


def test_the_cubic_by_hand() -> None:
    assert cubic_sparsity(0, 100, 0.9) == 0
    assert cubic_sparsity(50, 100, 0.9) == pytest.approx(0.9 * (1 - 0.125))
    assert cubic_sparsity(100, 100, 0.9) == cubic_sparsity(400, 100, 0.9) == 0.9
    assert [ramp_steps_of(n) for n in (0, 1, 2, 100)] == [0, 0, 1, 75]


class Watch(Hook):
    """Notes the zeros after every step."""

    def __init__(self) -> None:
        self.zeros: list[int] = []
        self.nonzero: list[Tensor] = []

    def after_step(self, model: nn.Module, step: int) -> None:
        self.zeros.append(zeros_of(model, LAYERS))
        self.nonzero.append(of(model, "3") != 0)


ZEROS = {"3": 461, "6": 700}


def test_gradual_sparsity_grows_to_its_number_and_then_stands_still() -> None:
    model, hook, watch = stripes_net(), GradualSparsity(ZEROS, every=5), Watch()
    curve = fit(model, [hook, watch])
    assert fell(curve)
    assert watch.zeros == sorted(watch.zeros)
    assert watch.zeros[0] == 0
    share = cubic_sparsity(10, 45, 1.0)
    assert watch.zeros[9] == sum(round(share * wanted) for wanted in ZEROS.values())
    assert watch.zeros[44:] == [1161] * 16
    assert {layer: int((of(model, layer) == 0).sum()) for layer in LAYERS} == ZEROS
    assert all(torch.equal(of(model, name) != 0, mask) for name, mask in hook.masks.items())
    # What was zero once stayed zero.
    for earlier, later in zip(watch.nonzero, watch.nonzero[1:], strict=False):
        assert bool((earlier | ~later).all())


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("hook_type", [GradualSparsity, Splicing])
def test_the_number_is_exact_after_hardly_any_training(
    steps: int, hook_type: type[GradualSparsity | Splicing]
) -> None:
    model = stripes_net()
    fit(model, [hook_type(ZEROS)], steps=steps)
    assert {layer: int((of(model, layer) == 0).sum()) for layer in LAYERS} == ZEROS


def test_hysteresis_by_hand() -> None:
    magnitudes = torch.tensor([1.0, 1.85, 2.0, 2.1, 2.3, 3.0])
    # The third is the quantile: off below 1.8, on above 2.2, as it was between.
    off, on = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    assert spliced(magnitudes, off, 3).tolist() == [False, False, False, False, True, True]
    assert spliced(magnitudes, on, 3).tolist() == [False, True, True, True, True, True]
    assert bool(spliced(magnitudes, off, 0).all())
    assert renewal_chance(0, 50) == 1
    assert renewal_chance(50, 50) == pytest.approx(0.1)


def test_splicing_lets_weights_come_back_and_ends_exactly() -> None:
    model, hook, watch = stripes_net(), Splicing(ZEROS), Watch()
    curve = fit(model, [hook, watch])
    assert fell(curve)
    assert {layer: int((of(model, layer) == 0).sum()) for layer in LAYERS} == ZEROS
    assert all(torch.equal(of(model, name) != 0, mask) for name, mask in hook.masks.items())
    returned = [
        int((~earlier & later).sum())
        for earlier, later in zip(watch.nonzero, watch.nonzero[1:], strict=False)
    ]
    assert sum(returned[:40]) > 0
    assert sum(returned[45:]) == 0


def test_masked_weights_learn_in_the_shadow() -> None:
    """One step by hand: W - rate x gradient at W * T, also where T is off."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        trained_weight(model, "0").copy_(torch.tensor([[1.0, 3.0]]))
    hook = Splicing({"0": 1})
    hook.start(model, 1000)
    assert of(model, "0").tolist() == [[0.0, 3.0]]
    with torch.no_grad():
        trained_weight(model, "0").sub_(torch.tensor([[-2.75, 0.5]]))
    hook.after_step(model, 0)
    # Shadow 3.75 and 2.5: the renewal (its chance is 1 at first) turns the first on.
    assert hook.state()["shadow.0"].tolist() == [[3.75, 2.5]]
    assert of(model, "0").tolist() == [[3.75, 2.5]]
    hook.finish(model)
    assert of(model, "0").tolist() == [[3.75, 0.0]]


@pytest.mark.parametrize("until", [10, 50])
def test_a_hook_goes_on_from_its_state(until: int) -> None:
    """What a fresh hook does after `load_state` is what the old one would have done."""

    def steps(hook: Hook, model: nn.Module, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for layer in LAYERS:
                weight = trained_weight(model, layer)
                weight.grad = torch.randn(weight.shape, generator=generator)
            hook.gradients(model, step)
            with torch.no_grad():
                for layer in LAYERS:
                    weight = trained_weight(model, layer)
                    weight.sub_(0.01 * weight.grad if weight.grad is not None else 0)
            hook.after_step(model, step)

    for make in (lambda: GradualSparsity(ZEROS), lambda: Splicing(ZEROS, seed=3)):
        model, hook = stripes_net(), make()
        hook.start(model, 60)
        steps(hook, model, 0, until)
        state = {name: tensor.clone() for name, tensor in hook.state().items()}
        resumed, fresh = stripes_net(seed=9), make()
        fresh.start(resumed, 60)
        resumed.load_state_dict(copy.deepcopy(model.state_dict()))
        fresh.load_state(state)
        for each, target in ((hook, model), (fresh, resumed)):
            steps(each, target, until, 60)
            each.finish(target)
        for layer in LAYERS:
            assert torch.equal(of(model, layer), of(resumed, layer)), layer
