"""The training loop learns, repeats itself by seed, and computes what its papers say."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from compression.artifact import Preprocessing
from compression.backend import Backend
from compression.errors import CheckpointInvalid, CompressionError
from compression.models.cifar_resnet import cifar_resnet
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.preprocess import preprocess
from compression.recover.augment import crop_and_flip
from compression.recover.fake_quant import FakeQuant
from compression.recover.hook import Hook
from compression.recover.training import Curve, Recipe, TrainingData, one_cycle, train
from compression.recover.training_state import Checkpoints, TrainingState


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(count: int) -> TrainingData:
    bunch = load_digits()
    images = bunch.images[:count, None].astype(np.uint8)
    return TrainingData(
        images=images,
        labels=bunch.target[:count].astype(np.int64),
        preprocessing=DIGITS_PREPROCESSING,
    )


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def run(
    model: nn.Module, data: TrainingData, recipe: Recipe, seed: int = 0, **options: Any
) -> tuple[Curve, list[Mapping[str, float]]]:
    reports: list[Mapping[str, float]] = []
    curve = train(
        model,
        data,
        recipe,
        teacher=options.get("teacher"),
        generator=torch.Generator().manual_seed(seed),
        backend=options.get("backend", Backend()),
        progress=reports.append,
        breathe=options.get("breathe", lambda: None),
        hooks=options.get("hooks", ()),
        checkpoints=options.get("checkpoints"),
        state=options.get("state"),
    )
    return curve, reports


def accuracy(model: nn.Module, data: TrainingData) -> float:
    with torch.inference_mode():
        found = model(preprocess(data.images, data.preprocessing)).argmax(1).numpy()
    assert data.labels is not None
    return float((found == data.labels).mean())


SHORT = Recipe(epochs=4, batch_size=32, augment=False)


def test_learns_and_reports() -> None:
    data, model, breaths = digits(600), small_net(), [0]

    def breathe() -> None:
        breaths[0] += 1

    curve, reports = run(model, data, SHORT, breathe=breathe)
    assert curve.steps == breaths[0] == 4 * (600 // 32)
    assert curve.images == curve.steps * 32
    assert [r["step"] for r in reports] == [20, 40, 60, 72]
    assert [r["of"] for r in reports] == [72] * 4
    assert [(r["step"], r["loss"]) for r in reports] == list(curve.points)
    assert reports[-1]["epoch"] == pytest.approx(72 * 32 / 600)
    assert reports[-1]["loss"] < 0.2 * reports[0]["loss"]
    assert not model.training
    assert accuracy(model, data) > 0.97
    assert curve.to_json()["steps"] == 72


@pytest.mark.parametrize("backend", [Backend(), Backend(channels_last=True, bf16=True)])
def test_same_seed_same_weights(backend: Backend) -> None:
    data, recipe = digits(200), Recipe(steps=12, batch_size=32)
    runs: list[tuple[Curve, dict[str, Tensor]]] = []
    for seed in (1, 1, 2):
        model = small_net()
        torch.manual_seed(len(runs))  # the global generator has no influence
        curve, _ = run(model, data, recipe, seed=seed, backend=backend)
        runs.append((curve, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][key], runs[1][1][key]) for key in runs[0][1])
    assert not torch.equal(runs[0][1]["0.weight"], runs[2][1]["0.weight"])


def test_training_leaves_the_global_generator_alone() -> None:
    model = small_net()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run(model, digits(64), Recipe(steps=2, batch_size=32))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_student_imitates_its_teacher_without_labels() -> None:
    data = digits(600)
    teacher = small_net()
    run(teacher, data, SHORT)
    weights = copy.deepcopy(teacher.state_dict())
    unlabelled = TrainingData(images=data.images, labels=None, preprocessing=data.preprocessing)
    student = small_net(seed=7)
    curve, _ = run(student, unlabelled, SHORT, teacher=teacher)
    assert curve.points[-1][1] < curve.points[0][1]
    assert accuracy(student, data) > 0.95
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_weights_and_biases_decay_as_stated() -> None:
    """One step from zero gradients moves only what decays."""

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.linear(x.flatten(1)))
            return out * 0

    model = Silent()
    before = copy.deepcopy(model.state_dict())
    images = (
        np.ones((8, 1, 2, 2), dtype=np.float32)
        * np.arange(8, dtype=np.float32)[:, None, None, None]
    )
    data = TrainingData(
        images=images, labels=np.zeros(8, np.int64), preprocessing=Preprocessing(scale=1.0)
    )
    recipe = Recipe(steps=1, batch_size=8, augment=False, weight_decay=0.1, learning_rate=0.5)
    run(model, data, recipe)
    rate = one_cycle(0, 1, 0.5)
    # Nesterov's first step: gradient + momentum x gradient.
    factor = 1 - rate * 0.1 * (1 + recipe.momentum)
    torch.testing.assert_close(model.linear.weight.data, before["linear.weight"] * factor)
    for key in ("linear.bias", "norm.weight", "norm.bias"):
        assert torch.equal(model.state_dict()[key], before[key]), key


def test_one_cycle_rises_and_falls() -> None:
    rates = [one_cycle(step, 400, 0.1) for step in range(400)]
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert rates.index(max(rates)) in range(95, 105)
    assert rates[0] == pytest.approx(0.004, rel=0.01)
    assert rates[-1] < 1e-4
    assert rates[:95] == sorted(rates[:95])
    assert rates[105:] == sorted(rates[105:], reverse=True)
    assert 0 < one_cycle(0, 1, 0.1) <= 0.1


def test_crops_are_windows_of_the_padded_image() -> None:
    images = torch.arange(1.0, 1 + 6 * 2 * 5 * 7).reshape(6, 2, 5, 7)
    crops = crop_and_flip(images, torch.Generator().manual_seed(0))
    assert crops.shape == images.shape
    assert crops.is_contiguous(memory_format=torch.channels_last)
    padded = functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for crop, image in zip(crops, padded, strict=True):
        windows = {
            (row, column, flip): image[:, row : row + 5, column : column + 7].flip(
                2 if flip else ()
            )
            for row in range(9)
            for column in range(9)
            for flip in (False, True)
        }
        matches = [place for place, window in windows.items() if torch.equal(window, crop)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 3


def test_refusals() -> None:
    data = digits(64)
    unlabelled = TrainingData(images=data.images, labels=None, preprocessing=data.preprocessing)
    with pytest.raises(CompressionError, match="neither labels nor a teacher"):
        run(small_net(), unlabelled, SHORT)
    poisoned = small_net()
    nn.init.constant_(poisoned.get_parameter("6.bias"), float("nan"))
    with pytest.raises(CompressionError, match="loss is nan at step 1 of 8"):
        run(poisoned, data, SHORT)
    with pytest.raises(CompressionError, match="learning_rate is 0; it must be greater than 0"):
        Recipe(learning_rate=0)
    with pytest.raises(CompressionError, match="64 images and 3 labels"):
        TrainingData(
            images=data.images, labels=np.zeros(3, np.int64), preprocessing=data.preprocessing
        )


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("kd_loss", "l2", "one of .'kl', 'ce_soft', 'ce_hard'."),
        ("feature_loss", "fsp", "one of .'none', 'cckd', 'attention', 'nst'."),
        ("feature_weight", -1.0, "at least 0"),
        ("mixup", 1.5, "in .0, 1."),
        ("average", "swa", "one of .'none', 'ema', 'tail'."),
        ("average_decay", 1.0, "in .0, 1."),
        ("average_tail", 0.0, "in .0, 1."),
        ("early_stop", 0, "at least 1"),
    ],
)
def test_fields_are_validated(field: str, value: Any, limit: str) -> None:
    with pytest.raises(CompressionError, match=f"Recipe's {field} is {value}; it must be {limit}"):
        Recipe(**{field: value})


class Drifting(Hook):
    """Pulls the first bias to a number that every step changes."""

    def start(self, model: nn.Module, total_steps: int) -> None:
        self.target = torch.zeros(())

    def penalty(self, model: nn.Module, step: int) -> Tensor:
        return (model.get_parameter("0.bias") - self.target).square().mean()

    def after_step(self, model: nn.Module, step: int) -> None:
        self.target = self.target + model.get_parameter("6.bias").detach().mean()

    def state(self) -> Mapping[str, Tensor]:
        return {"target": self.target}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.target = state["target"]


@pytest.mark.parametrize(
    ("recipe", "backend"),
    [
        (Recipe(steps=23, batch_size=32, mixup=0.5, average="ema"), Backend()),
        (
            Recipe(steps=23, batch_size=32, average="tail", feature_loss="cckd", early_stop=9),
            Backend(channels_last=True, bf16=True),
        ),
    ],
)
def test_interrupted_is_uninterrupted(recipe: Recipe, backend: Backend) -> None:
    """Bit for bit, with dropout, augmentation, averages and hooks that remember."""

    def hooks() -> tuple[Hook, ...]:
        return (Hook(), Drifting(), FakeQuant(weight_bits=4, warm_up=0.5))

    data, teacher = digits(100), small_net(seed=3)  # three batches an epoch
    states: list[bytes] = []
    keep = Checkpoints(every_steps=7, keep=lambda state: states.append(state.to_bytes()))
    options: dict[str, Any] = {"teacher": teacher, "backend": backend}
    model = small_net()
    curve, reports = run(model, data, recipe, hooks=hooks(), **options)
    watched = small_net()
    run(watched, data, recipe, hooks=hooks(), checkpoints=keep, **options)
    assert len(states) == 3
    for number, written in enumerate(states):
        state = TrainingState.from_bytes(written)
        assert state.step == 7 * (number + 1)
        resumed = small_net(seed=9)  # its weights come from the state
        again, later = run(resumed, data, recipe, 77, hooks=hooks(), state=state, **options)
        assert again == curve
        assert later == reports[-len(later) :]
        for key, value in model.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key
            assert torch.equal(value, watched.state_dict()[key]), key


def test_a_state_fits_one_training_only() -> None:
    data, recipe, states = digits(64), Recipe(steps=4, batch_size=32), list[TrainingState]()
    keep = Checkpoints(every_steps=2, keep=states.append)
    run(small_net(), data, recipe, checkpoints=keep)
    other = Recipe(steps=4, batch_size=32, learning_rate=0.1)
    with pytest.raises(CompressionError, match=r"whose learning_rate is 0\.05; here it is 0\.1"):
        run(small_net(), data, other, state=states[0])
    with pytest.raises(CompressionError, match="state of step 2 does not fit the model"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, recipe, state=states[0])
    with pytest.raises(CompressionError, match="every_steps is 0"):
        Checkpoints(every_steps=0, keep=states.append)


def test_a_damaged_state_is_refused() -> None:
    states: list[TrainingState] = []
    keep = Checkpoints(every_steps=1, keep=states.append)
    run(small_net(), digits(64), Recipe(steps=1, batch_size=32), checkpoints=keep)
    written = states[0].to_bytes()
    assert TrainingState.from_bytes(written).tensors.keys() == states[0].tensors.keys()
    damaged = (
        written[:-1],
        written[:40],
        b"",
        written.replace(b"training_state", b"training_stale"),
        written.replace(b'version\\":1', b'version\\":7'),
        written.replace(b'version\\": 1', b'version\\": 7'),
    )
    for data in damaged:
        if data != written:
            with pytest.raises(CheckpointInvalid, match="training state"):
                TrainingState.from_bytes(data)
    assert sum(data != written for data in damaged) == 5


def test_training_stops_where_the_loss_stands_still() -> None:
    data = digits(64)
    recipe = Recipe(steps=200, batch_size=32, learning_rate=1e-30, augment=False, early_stop=2)
    still = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    curve, reports = run(still, data, recipe)
    assert curve.steps == 20 * len(curve.points) < 200
    losses = [loss for _, loss in curve.points]
    assert min(losses[-2:]) >= min(losses[:-2])
    assert reports[-1]["of"] == 200


def test_an_average_is_left_in_the_model() -> None:
    """The mean of the last four steps' weights, of an otherwise equal training."""
    data, kept = digits(64), list[dict[str, Tensor]]()

    class Watch(Hook):
        def after_step(self, model: nn.Module, step: int) -> None:
            kept.append({k: v.detach().clone() for k, v in model.named_parameters()})

    model = small_net()
    recipe = Recipe(steps=8, batch_size=32, average="tail", average_tail=0.5)
    run(model, data, recipe, hooks=(Watch(),))
    for name, parameter in model.named_parameters():
        mean = torch.stack([weights[name] for weights in kept[4:]]).mean(0)
        torch.testing.assert_close(parameter.data, mean)


def test_no_steps_is_no_change() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    curve, reports = run(model, digits(64), Recipe(epochs=0))
    assert (curve.steps, curve.points, reports) == (0, (), [])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_whole_resnet_trains_on_bfloat16() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 32, 32)).astype(np.uint8)
    labels = rng.integers(0, 10, 64)
    data = TrainingData(images=images, labels=labels, preprocessing=Preprocessing())
    model, teacher = cifar_resnet(20), cifar_resnet(20)
    recipe = Recipe(steps=3, batch_size=32)
    curve, _ = run(model, data, recipe, teacher=teacher, backend=Backend(True, True))
    assert math.isfinite(curve.points[-1][1])
    assert all(p.dtype == torch.float32 for p in model.parameters())
