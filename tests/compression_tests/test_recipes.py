"""Recipes built on the one training loop do what their papers say."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from compression.backend import Backend
from compression.coupling import Coupling, Tap
from compression.errors import CompressionError
from compression.models.digits_training import DIGITS_PREPROCESSING
from compression.recover.augment import mix
from compression.recover.averaging import WeightAverage
from compression.recover.born_again import born_again
from compression.recover.scratch import reinitialize, scratch
from compression.recover.slimming import SlimmingPenalty
from compression.recover.soft_filters import Criterion, SoftFilters, spread
from compression.recover.training import Recipe, TrainingData, train
from compression.recover.training_state import Course
from compression.surgery import cuts_of, thin


class Residual(nn.Module):
    """A stream of 8 channels that two convolutions produce, and 6 inner channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.norm(self.stem(x)))
        inner = functional.relu(self.inner_norm(self.inner(out)))
        out = functional.relu(out + self.outer_norm(self.outer(inner)))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def tap(layer: str, side: str, channels: int) -> Tap:
    index = np.arange(channels).reshape(-1, 1)
    return Tap(layer=layer, side="in" if side == "in" else "out", index=index)


INNER = Coupling(
    name="inner",
    channels=6,
    taps=(tap("inner", "out", 6), tap("inner_norm", "out", 6), tap("outer", "in", 6)),
)
STREAM = Coupling(
    name="stem",
    channels=8,
    taps=(
        tap("stem", "out", 8),
        tap("norm", "out", 8),
        tap("inner", "in", 8),
        tap("outer", "out", 8),
        tap("outer_norm", "out", 8),
        tap("head", "in", 8),
    ),
)


def residual(seed: int = 0) -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Residual()


def digits(count: int = 200) -> TrainingData:
    bunch = load_digits()
    return TrainingData(
        images=bunch.images[:count, None].astype(np.uint8),
        labels=bunch.target[:count].astype(np.int64),
        preprocessing=DIGITS_PREPROCESSING,
    )


def run(model: nn.Module, recipe: Recipe, *hooks: object, teacher: nn.Module | None = None) -> None:
    train(
        model,
        digits(),
        recipe,
        teacher=teacher,
        generator=torch.Generator().manual_seed(0),
        backend=Backend(),
        progress=lambda report: None,
        breathe=lambda: None,
        hooks=hooks,  # type: ignore[arg-type]
    )


QUICK = Recipe(steps=12, batch_size=32, augment=False)


@pytest.mark.parametrize("criterion", ["l2", "taylor", "global_taylor"])
def test_soft_filters_leave_channels_that_can_be_removed(criterion: Criterion) -> None:
    model, keep = residual(), {"inner": 3, "stem": 5}
    hook = SoftFilters((INNER, STREAM), keep, every_steps=5, criterion=criterion)
    run(model, QUICK, hook)
    assert sum(map(len, hook.kept.values())) == 8
    if criterion != "global_taylor":
        assert {name: len(kept) for name, kept in hook.kept.items()} == keep
    kept = {name: np.array(channels) for name, channels in hook.kept.items()}
    pruned = thin(model, cuts_of(model, (INNER, STREAM), kept))
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)
    gone = np.setdiff1d(np.arange(6), kept["inner"])
    for weight in (model.inner.weight, model.inner_norm.weight, model.inner_norm.bias):
        assert not weight[gone].any()
        assert weight[kept["inner"]].abs().sum() > 0


def test_soft_filters_zero_the_smallest_and_let_them_return() -> None:
    model = residual()
    hook = SoftFilters((INNER, STREAM), {"inner": 4}, every_steps=2)
    hook.start(model, 10)
    with torch.no_grad():
        model.inner.weight[1] *= 0.1
        model.inner.weight[4] *= 0.1
    hook.after_step(model, 0)
    assert hook.kept == {}
    norms = model.inner_norm.weight.clone()
    hook.after_step(model, 1)
    assert hook.kept == {"inner": (0, 2, 3, 5)}
    assert not model.inner.weight[[1, 4]].any()
    assert torch.equal(model.inner_norm.weight, norms)  # so that gradients still reach them
    with torch.no_grad():
        model.inner_norm.bias.fill_(0.1)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model.train()(x).square().sum().backward()
    gradient = model.inner.weight.grad
    assert gradient is not None
    assert gradient[[1, 4]].abs().sum() > 0


def test_first_order_score_by_hand() -> None:
    model = residual()
    hook = SoftFilters((INNER, STREAM), {"stem": 6}, every_steps=1, criterion="taylor")
    hook.start(model, 5)
    generator = torch.Generator().manual_seed(0)
    totals = torch.zeros(8)
    for step in range(2):
        score = torch.zeros(8)
        for parameter in (model.stem.weight, model.stem.bias, model.outer.weight):
            assert parameter is not None
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            product = parameter.grad * parameter.detach()
            score += product.flatten(1).sum(1) if product.dim() > 1 else product
        totals += score.abs()
        hook.gradients(model, step)
    torch.testing.assert_close(hook.state()["stem"].float(), totals)
    hook.after_step(model, 1)
    expected = totals.argsort(descending=True)[:6].sort().values.tolist()
    assert hook.kept["stem"] == tuple(expected)
    assert not hook.state()["stem"].any()


def test_channels_spread_over_couplings() -> None:
    scores = {"a": np.array([9.0, 1.0, 8.0]), "b": np.array([0.1, 0.2]), "c": np.array([7.0, 5.0])}
    assert spread(scores, 5) == {"a": 2, "b": 1, "c": 2}
    assert spread(scores, 3) == {"a": 1, "b": 1, "c": 1}
    assert spread(scores, 7) == {"a": 3, "b": 2, "c": 2}


def test_soft_filters_refuse() -> None:
    with pytest.raises(CompressionError, match="'inner' keeps 7 of 6 channels"):
        SoftFilters((INNER,), {"inner": 7}, every_steps=1)
    with pytest.raises(CompressionError, match="'stem' is unknown"):
        SoftFilters((INNER,), {"stem": 1}, every_steps=1)
    with pytest.raises(CompressionError, match="every_steps is 0"):
        SoftFilters((INNER,), {"inner": 1}, every_steps=0)


def test_slimming_adds_the_sign_of_every_gamma() -> None:
    model, hook = residual(), SlimmingPenalty(0.01)
    hook.start(model, 1)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0, -0.5, 1.0, 1.0, 1.0]))
    model.norm.weight.grad = torch.full((8,), 0.5)
    hook.gradients(model, 0)
    expected = 0.5 + 0.01 * model.norm.weight.detach().sign()
    torch.testing.assert_close(model.norm.weight.grad, expected)
    assert model.inner_norm.weight.grad is None


def test_slimming_takes_the_norms_of_a_stream_together() -> None:
    model, hook = residual(), SlimmingPenalty(0.01, (STREAM, INNER))
    hook.start(model, 1)
    with torch.no_grad():
        model.norm.weight.fill_(3.0)
        model.outer_norm.weight.fill_(-4.0)
    for norm in (model.norm, model.outer_norm, model.inner_norm):
        norm.weight.grad = torch.zeros_like(norm.weight)
    hook.gradients(model, 0)
    scale = 0.01 * math.sqrt(2) / 5
    torch.testing.assert_close(model.norm.weight.grad, torch.full((8,), 3 * scale))
    torch.testing.assert_close(model.outer_norm.weight.grad, torch.full((8,), -4 * scale))
    torch.testing.assert_close(model.inner_norm.weight.grad, torch.full((6,), 0.01))


def test_slimming_shrinks_gammas_in_training() -> None:
    plain, slim = residual(), residual()
    run(plain, QUICK)
    run(slim, QUICK, SlimmingPenalty(0.05, (STREAM, INNER)))
    assert slim.inner_norm.weight.abs().sum() < plain.inner_norm.weight.abs().sum()
    with pytest.raises(CompressionError, match="none of the channels of Linear"):
        SlimmingPenalty(0.1).start(nn.Linear(2, 2), 1)
    with pytest.raises(CompressionError, match="strength is -1"):
        SlimmingPenalty(-1)


def test_scratch_keeps_the_shape_and_the_computation() -> None:
    model, recipe = residual(), Recipe(epochs=10)
    before = copy.deepcopy(model.state_dict())
    made = [
        scratch(
            model,
            recipe,
            variant,  # type: ignore[arg-type]
            dense_macs=dense,
            macs=1000,
            generator=torch.Generator().manual_seed(seed),
        )
        for variant, dense, seed in (("E", 1500, 0), ("B", 1500, 0), ("B", 5000, 1))
    ]
    assert [found.epochs for _, found in made] == [10, 15, 20]
    states = [network.state_dict() for network, _ in made]
    assert all(torch.equal(states[0][key], states[1][key]) for key in before)
    assert not torch.equal(states[0]["stem.weight"], states[2]["stem.weight"])
    assert not torch.equal(states[0]["stem.weight"], before["stem.weight"])
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    steps = scratch(
        model,
        Recipe(steps=30),
        "B",
        dense_macs=3,
        macs=2,
        generator=torch.Generator().manual_seed(0),
    )[1].steps
    assert steps == 45
    with pytest.raises(CompressionError, match="macs is 0"):
        scratch(model, recipe, "B", dense_macs=3, macs=0, generator=torch.Generator())


def test_reinitialize_resets_statistics_and_names_what_it_cannot() -> None:
    model = residual()
    model.norm.running_mean.fill_(3.0)  # type: ignore[union-attr]
    torch.manual_seed(3)
    untouched = torch.random.get_rng_state()
    reinitialize(model, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), untouched)
    assert not model.norm.running_mean.any()  # type: ignore[union-attr]
    deviation = float(model.inner.weight.detach().std())
    assert deviation == pytest.approx(math.sqrt(2 / 72), rel=0.2)
    own = nn.Module()
    own.token = nn.Parameter(torch.zeros(3))
    with pytest.raises(CompressionError, match=r"Layer 'x' .Module. cannot be initialised"):
        reinitialize(nn.ModuleDict({"x": own}), torch.Generator())


@pytest.mark.parametrize("inherit", [False, True])
def test_every_generation_teaches_the_next(inherit: bool) -> None:
    model, teacher = residual(), residual(1)
    reports: list[Mapping[str, float]] = []
    ends: list[nn.Module] = []
    before = copy.deepcopy(model.state_dict())
    found = born_again(
        model,
        TrainingData(images=digits().images, labels=None, preprocessing=DIGITS_PREPROCESSING),
        QUICK,
        teacher=teacher,
        generations=2,
        inherit=inherit,
        generator=torch.Generator().manual_seed(0),
        backend=Backend(),
        progress=reports.append,
        breathe=lambda: None,
        trained=ends.append,
    )
    assert [report["generation"] for report in reports] == [0, 1]
    assert ends == [generation.model for generation in found]
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    # The second student by hand: from the same start, by the first student.
    generator = torch.Generator().manual_seed(0)
    students = []
    for taught_by in (teacher, found[0].model):
        student = copy.deepcopy(model)
        if not inherit:
            reinitialize(student, generator)
        data = TrainingData(images=digits().images, labels=None, preprocessing=DIGITS_PREPROCESSING)
        train(
            student,
            data,
            QUICK,
            teacher=taught_by,
            generator=generator,
            backend=Backend(),
            progress=lambda report: None,
            breathe=lambda: None,
        )
        students.append(student)
    for mine, theirs in zip(students, found, strict=True):
        theirs_state = theirs.model.state_dict()
        assert all(torch.equal(v, theirs_state[k]) for k, v in mine.state_dict().items())
    with pytest.raises(CompressionError, match="generations is 0"):
        born_again(
            model,
            digits(),
            QUICK,
            teacher=None,
            generations=0,
            inherit=True,
            generator=torch.Generator(),
            backend=Backend(),
            progress=lambda report: None,
            breathe=lambda: None,
        )


def test_averages_by_hand() -> None:
    values = [4.0, 1.0, 7.0, 2.0]
    for kind, expected in (
        ("none", 2.0),
        ("tail", (7 + 2) / 2),
        # Decays of steps 1, 2, 3: min(0.2, 2/11), min(0.2, 3/12), 0.2.
        ("ema", 0.2 * (0.2 * (2 / 11 * 4 + 9 / 11 * 1) + 0.8 * 7) + 0.8 * 2),
    ):
        model = nn.Linear(1, 1, bias=False)
        average = WeightAverage(kind, decay=0.2, first_step=2)  # type: ignore[arg-type]
        for step, value in enumerate(values):
            nn.init.constant_(model.weight, value)
            if step == 2:  # an interruption
                state = average.state()
                average = WeightAverage(kind, decay=0.2, first_step=2)  # type: ignore[arg-type]
                average.load_state(state)
            average.update(model, step)
        average.write(model)
        assert model.weight.item() == pytest.approx(expected), kind


def test_mixtures_by_hand() -> None:
    images = torch.randn(64, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    mixed, how = mix(images, 0.5, torch.Generator().manual_seed(1))
    w = how.weights.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, w * images + (1 - w) * images[how.partners])
    assert sorted(how.partners.tolist()) == list(range(64))
    alone = how.weights == 1
    assert 16 < int(alone.sum()) < 48
    assert torch.equal(mixed[alone], images[alone])
    assert (mix(images, 1.0, torch.Generator())[1].weights < 1).all()


def test_a_course_stalls_after_its_patience() -> None:
    course = Course(points=[(20, 3.0), (40, 2.0), (60, 2.5), (80, 2.0)])
    assert [course.stalled(p) for p in (None, 1, 2, 3, 4)] == [False, True, True, False, False]
