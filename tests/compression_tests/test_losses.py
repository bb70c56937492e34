"""Each loss of distillation computes what its paper says, and reads the right layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compression.backend import Backend
from compression.errors import CompressionError
from compression.models.cifar_resnet import cifar_resnet
from compression.recover.augment import Mixture
from compression.recover.features import Capture, penultimate_layer, stage_ends
from compression.recover.losses import (
    KD_LOSSES,
    attention_loss,
    attention_map,
    cckd_loss,
    correlation,
    distillation_loss,
    imitation_loss,
    nst_loss,
)
from compression.recover.objective import Objective, label_loss
from compression.recover.training import Recipe


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distillation_loss_by_hand() -> None:
    student, teacher, t = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.0]]), 2.0
    p = 1 / (1 + math.exp(-0.25))
    q = 1 / (1 + math.exp(-1.0))
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(distillation_loss(student, teacher, t)) == pytest.approx(4 * divergence, rel=1e-5)
    assert float(distillation_loss(teacher, teacher, t)) == pytest.approx(0, abs=1e-7)


def test_imitation_losses_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.0]])
    p, q = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2.0))
    soft = -p * math.log(q) - (1 - p) * math.log(1 - q)
    assert float(imitation_loss("ce_soft", student, teacher, 4.0)) == pytest.approx(soft)
    assert float(imitation_loss("ce_hard", student, teacher, 4.0)) == pytest.approx(-math.log(q))
    expected = float(distillation_loss(student, teacher, 4.0))
    assert float(imitation_loss("kl", student, teacher, 4.0)) == expected


def test_soft_cross_entropy_has_the_gradient_of_kl_without_temperature() -> None:
    teacher, gradients = random(5, 7, seed=1), []
    for kind, t in (("kl", 1.0), ("ce_soft", 9.0)):
        student = random(5, 7).requires_grad_()
        loss = imitation_loss(kind, student, teacher, t)  # type: ignore[arg-type]
        gradients.append(torch.autograd.grad(loss, student)[0])
    torch.testing.assert_close(*gradients)


def test_correlation_by_hand() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    found = correlation(features, 0.4)
    decay, half = math.exp(-0.8), math.sqrt(0.5)
    polynomial = [decay * (1 + 0.8 * s + (0.8 * s) ** 2 / 2) for s in (1.0, 0.0, half)]
    places = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
    expected = torch.tensor(polynomial)[places]
    torch.testing.assert_close(found, expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.floats(0.01, 0.4))
def test_correlation_approximates_the_kernel(seed: int, gamma: float) -> None:
    units = functional.normalize(random(6, 4, seed=seed), dim=1)
    kernel = torch.exp(-gamma * torch.cdist(units, units).square())
    # The remainder of exp's Taylor polynomial of order 2 at 2 g s, |s| <= 1.
    bound = (2 * gamma) ** 3 / 6 * math.exp(2 * gamma) * math.exp(-2 * gamma)
    assert float((correlation(units, gamma) - kernel).abs().max()) <= bound + 1e-5


def test_cckd_needs_no_equal_widths() -> None:
    student, teacher = random(4, 3), random(4, 5, seed=1)
    expected = np.square(correlation(student).numpy() - correlation(teacher).numpy()).mean()
    assert float(cckd_loss(student, teacher)) == pytest.approx(float(expected))
    rotated = teacher @ torch.linalg.qr(random(5, 5, seed=2))[0]
    assert float(cckd_loss(rotated, 3 * teacher)) == pytest.approx(0, abs=1e-10)


def test_attention_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])  # 1 x 2 x 1 x 2: energies 5 and 4
    torch.testing.assert_close(attention_map(maps), torch.tensor([[5.0, 4.0]]) / math.sqrt(41))
    other = torch.tensor([[[[0.0, 7.0]]]])
    expected = 25 / 41 + (4 / math.sqrt(41) - 1) ** 2
    assert float(attention_loss(maps, other)) == pytest.approx(expected)
    assert float(attention_loss(maps, 5 * maps)) == pytest.approx(0, abs=1e-12)
    silent = torch.zeros_like(other)
    assert float(attention_loss(silent, other)) == pytest.approx(1)


def test_nst_by_hand() -> None:
    student = torch.tensor([[[[2.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 3.0]], [[1.0, 1.0]]]])
    # Units: s = (1, 0); t = (0, 1) and (h, h) with h^2 = 1/2. Squared products of pairs:
    among_teachers, among_students, between = (1 + 0.5 + 0.5 + 1) / 4, 1, (0 + 0.5) / 2
    expected = among_teachers + among_students - 2 * between
    assert float(nst_loss(student, teacher)) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), channels=st.integers(1, 6))
def test_nst_is_a_squared_distance(seed: int, channels: int) -> None:
    maps = random(2, channels, 3, 3, seed=seed)
    assert float(nst_loss(maps.flip(1), maps)) == pytest.approx(0, abs=1e-6)
    doubled = torch.cat((maps, 2 * maps), 1)  # the same set of units, twice
    assert float(nst_loss(doubled, maps)) == pytest.approx(0, abs=1e-6)
    assert float(nst_loss(random(2, 4, 3, 3, seed=seed + 1), maps)) >= -1e-6


def test_maps_of_other_shapes_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"'nst' needs maps.*\(2, 3\) \(student\)"):
        nst_loss(torch.zeros(2, 3), torch.zeros(2, 3, 4, 4))
    with pytest.raises(CompressionError, match=r"\(2, 3, 2, 2\) \(student\) and \(2, 3, 4, 4\)"):
        attention_loss(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 4, 4))


def test_mixed_labels_weigh_both_classes() -> None:
    logits, labels = random(4, 3), torch.tensor([0, 1, 2, 0])
    weights = torch.tensor([1.0, 0.0, 0.25, 0.5])
    mixture = Mixture(partners=torch.tensor([1, 0, 3, 2]), weights=weights)
    targets = functional.one_hot(labels, 3).float()
    targets = weights[:, None] * targets + (1 - weights)[:, None] * targets[[1, 0, 3, 2]]
    expected = functional.cross_entropy(logits, targets)
    torch.testing.assert_close(label_loss(logits, labels, mixture), expected)


class TwoStages(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(inplace=True))
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x)).mean((2, 3))
        logits: Tensor = self.head(functional.relu(self.hidden(out)))
        return logits


def two_stages(width: int, seed: int = 0) -> TwoStages:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TwoStages(width)


def test_layers_are_found() -> None:
    model, x = cifar_resnet(20).eval(), random(2, 3, 32, 32)
    assert stage_ends(model, x, Backend()) == ("layer1", "layer2", "layer3")
    assert penultimate_layer(model, x, Backend()) == "linear"
    assert stage_ends(two_stages(4), x, Backend()) == ("first", "second")
    with pytest.raises(CompressionError, match="runs no linear layer"):
        penultimate_layer(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), x, Backend())
    with pytest.raises(CompressionError, match="no layer that gives maps"):
        stage_ends(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), x, Backend())


def test_capture_reads_layers_and_leaves() -> None:
    model, x = two_stages(4), random(2, 3, 8, 8)
    with Capture(model, ("first", "second")) as out, Capture(model, ("head",), "in") as taken:
        model(x)
        torch.testing.assert_close(out.of("second"), model.second(out.of("first")))
        torch.testing.assert_close(model.head(taken.of("head")), model(x))
        assert out.of("first").requires_grad
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(CompressionError, match="'first' took no part"):
        out.of("first")
    with pytest.raises(CompressionError, match="'third' is none of the 9 layers of TwoStages"):
        Capture(model, ("third",))


@pytest.mark.parametrize("kind", ["cckd", "attention", "nst"])
@pytest.mark.parametrize("backend", [Backend(), Backend(channels_last=True, bf16=True)])
def test_the_objective_adds_features_of_a_narrower_student(kind: str, backend: Backend) -> None:
    student, teacher = two_stages(3), two_stages(6, seed=1).eval()
    x, labels = random(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    plain = Recipe(distill_weight=0.7)
    full = Recipe(distill_weight=0.7, feature_loss=kind, feature_weight=2.0)  # type: ignore[arg-type]
    with torch.no_grad():
        s, t = backend.forward(student, x), backend.forward(teacher, x)
    logits_loss = 0.7 * distillation_loss(s, t, 4.0) + 0.3 * functional.cross_entropy(s, labels)
    with Objective(student, teacher, plain, backend) as objective:
        torch.testing.assert_close(objective.loss(x, labels, None).detach(), logits_loss)
    with Objective(student, teacher, full, backend) as objective:
        loss = objective.loss(x, labels, None)
        loss.backward()  # type: ignore[no-untyped-call]
    inner = ("hidden",) if kind == "cckd" else ("first", "second")
    with torch.no_grad(), Capture(student, inner) as a, Capture(teacher, inner) as b:
        backend.forward(student, x), backend.forward(teacher, x)
        pairs = [(a.of(name), b.of(name)) for name in inner]
        function = {"attention": attention_loss, "nst": nst_loss, "cckd": cckd_loss}[kind]
        if kind == "cckd":  # the head takes them behind the activation
            pairs = [(functional.relu(s), functional.relu(t)) for s, t in pairs]
        features = sum(float(function(s, t)) for s, t in pairs)
    assert loss.item() == pytest.approx(float(logits_loss) + 2 * features, rel=1e-5)
    assert student.get_parameter("first.0.weight").grad is not None
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())


def test_objective_names_a_layer_that_the_student_lacks() -> None:
    student, teacher = two_stages(3), two_stages(3)
    student.second[1] = nn.Identity()
    del student.second[1]
    recipe = Recipe(feature_loss="attention", feature_layers=("second.1",))
    with (
        Objective(student, teacher, recipe, Backend()) as objective,
        pytest.raises(CompressionError, match=r"'second\.1' is none of"),
    ):
        objective.loss(random(2, 3, 8, 8), None, None)


@pytest.mark.parametrize("kind", KD_LOSSES)
def test_every_loss_of_logits_is_least_at_the_teacher(kind: str) -> None:
    teacher = 4 * random(6, 5)
    at = float(imitation_loss(kind, teacher, teacher, 4.0))  # type: ignore[arg-type]
    away = float(imitation_loss(kind, teacher + random(6, 5, seed=3), teacher, 4.0))  # type: ignore[arg-type]
    assert at < away or kind == "ce_hard"
