"""Selectors that look at filters' distances, activations, gradients and classes; and chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.coupling import Coupling, ParameterTap, Tap
from compression.errors import PlanInvalid
from compression.graph import trace
from compression.primitives.rankings import Rankings
from compression.selectors.apoz import Apoz
from compression.selectors.dcp import DiscriminationAware
from compression.selectors.fisher import Fisher
from compression.selectors.fpgm import GeometricMedian
from compression.selectors.lasso import Lasso
from compression.selectors.random import Random
from compression.selectors.selector import Batch, Evidence, Selector
from compression.selectors.thinet import ThiNet
from tests.builders import SHAPE, ConcatNet, FlattenVgg, MobileNet, seeded

SELECTORS: dict[str, Selector] = {
    "fpgm": GeometricMedian(),
    "apoz": Apoz(),
    "fisher": Fisher(),
    "dcp": DiscriminationAware(),
    "random": Random(),
}


def evidence(images: int = 8, count: int = 2) -> Evidence:
    generator = torch.Generator().manual_seed(3)
    batches: list[Batch] = [
        (
            torch.randn(images, *SHAPE, generator=generator),
            torch.randint(0, 10, (images,), generator=generator),
        )
        for _ in range(count)
    ]
    return Evidence(batches=batches, calibration=[x for x, _ in batches])


def couplings(model: nn.Module) -> tuple[Coupling, ...]:
    return tuple(c for c in trace(model, SHAPE) if not c.is_output)


@pytest.mark.parametrize("build", [FlattenVgg, MobileNet, ConcatNet])
@pytest.mark.parametrize("name", list(SELECTORS))
def test_scores_are_finite_repeat_and_leave_the_model_alone(
    name: str, build: type[nn.Module]
) -> None:
    model = seeded(build)
    groups = couplings(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first = SELECTORS[name].scores(model, groups, evidence())
    model.train()
    second = SELECTORS[name].scores(model, groups, evidence())
    assert torch.equal(state, torch.get_rng_state())
    assert {site: score.shape for site, score in first.items()} == {
        c.name: (c.channels,) for c in groups
    }
    for site, scores in first.items():
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()
        assert len(set(scores.tolist())) > 1
        assert np.array_equal(scores, second[site])
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", list(SELECTORS))
def test_what_a_selector_says_it_needs_is_what_it_misses(name: str) -> None:
    selector = SELECTORS[name]
    model = seeded(FlattenVgg)
    rankings = Rankings({c.name: c for c in couplings(model)}, SELECTORS)
    if selector.needs_labels or selector.needs_inputs:
        what = "labelled batches" if selector.needs_labels else "calibration inputs"
        with pytest.raises(PlanInvalid, match=f"'{name}' needs {what}; there are none"):
            rankings.order(model, name)
        with pytest.raises(PlanInvalid, match=f"'{name}' needs {what}; there are none"):
            selector.scores(model, couplings(model), Evidence())
    else:
        assert sorted(rankings.order(model, name)["hidden"]) == list(range(24))


def test_rankings_pass_all_evidence_on_and_order_by_score() -> None:
    model = seeded(FlattenVgg)
    groups = couplings(model)
    given = evidence()
    rankings = Rankings(
        {c.name: c for c in groups},
        SELECTORS,
        batches=given.batches,
        calibration=given.calibration,
        seed=4,
    )
    expected = Evidence(batches=given.batches, calibration=given.calibration, seed=4)
    for name, selector in SELECTORS.items():
        scores = selector.scores(model, groups, expected)
        for site, order in rankings.order(model, name).items():
            assert (np.diff(scores[site][order]) <= 0).all()
    with pytest.raises(PlanInvalid, match=r"Unknown selector 'l9'; known: fpgm, apoz"):
        rankings.order(model, "l9")


def test_fpgm_is_the_sum_of_distances_between_filters_of_all_producers() -> None:
    model = seeded(MobileNet)
    scores = GeometricMedian().scores(model, couplings(model), Evidence())["stem"]
    filters = torch.cat(
        [
            model.get_parameter(f"{layer}.weight").detach().flatten(1)
            for layer in ("stem", "blocks.0.project")
        ],
        1,
    ).double()
    expected = [sum(float((a - b).norm()) for b in filters) for a in filters]
    assert scores == pytest.approx(np.array(expected))


def test_fpgm_gives_up_the_filter_in_the_middle_not_the_smallest() -> None:
    model = seeded(FlattenVgg)
    with torch.no_grad():
        weight = model.get_parameter("hidden.weight")
        weight.add_(10.0)
        weight[7] = weight.mean(0)
    scores = GeometricMedian().scores(model, couplings(model), Evidence())["hidden"]
    assert scores.argmin() == 7


def test_apoz_is_the_share_of_activations_that_are_not_zero() -> None:
    model = seeded(FlattenVgg)
    given = evidence()
    scores = Apoz().scores(model, couplings(model), given)
    with torch.no_grad():
        hidden = torch.cat(
            [
                functional.relu(
                    model.get_submodule("hidden")(model.get_submodule("features")(x).flatten(1))
                )
                for x in given.calibration
            ]
        )
        pooled = torch.cat(
            [nn.Sequential(*model.get_submodule("features")[:4])(x) for x in given.calibration]  # type: ignore[index]
        )
        signed = torch.cat([model.get_submodule("features")(x) for x in given.calibration])
    assert scores["hidden"] == pytest.approx((hidden > 0).double().mean(0).numpy())
    assert scores["features.0"] == pytest.approx((pooled > 0).double().mean((0, 2, 3)).numpy())
    # After PReLU zeros say nothing.
    assert scores["features.4"] == pytest.approx(
        signed.abs().double().mean((0, 2, 3)).numpy(), rel=1e-5
    )


def test_apoz_of_several_consumers_is_their_mean() -> None:
    model = seeded(ConcatNet)
    scores = Apoz().scores(model, couplings(model), evidence())["stem"]
    with torch.no_grad():
        x = torch.cat(list(evidence().calibration))
        stem = functional.relu(model.get_submodule("stem")(x))
        norm = model.get_submodule("norm")
        left, right = model.get_submodule("left")(stem), model.get_submodule("right")(stem)
        merged = functional.relu(norm(torch.cat([stem, left, right, left], 1)))[:, :6]
    shares = [(a > 0).double().mean((0, 2, 3)).numpy() for a in (stem, stem, merged)]
    assert scores == pytest.approx(np.mean(shares, axis=0))


def test_fisher_is_half_the_mean_square_of_the_derivative_by_the_gate() -> None:
    model = seeded(FlattenVgg)
    given = evidence()
    scores = Fisher().scores(model, couplings(model), given)["features.4"]
    total = torch.zeros(20, dtype=torch.float64)
    for x, labels in given.batches:
        for i in range(len(x)):
            features = model.get_submodule("features")(x[i : i + 1]).detach().requires_grad_()
            hidden = functional.relu(model.get_submodule("hidden")(features.flatten(1)))
            logits = model.get_submodule("classifier")(hidden)
            loss = functional.cross_entropy(logits, labels[i : i + 1])
            (gradient,) = torch.autograd.grad(loss, features)
            total += (gradient * features).sum((0, 2, 3)).double().square().detach()
    assert scores == pytest.approx((total / (2 * 16)).numpy(), rel=1e-3)


def test_fisher_gates_all_consumers_of_a_channel_together() -> None:
    """The gate's derivative is that of scaling the channel where it is made (no padding here)."""
    model = seeded(MobileNet)
    given = evidence(images=4, count=1)
    scores = Fisher().scores(model, couplings(model), given)["blocks.1.project"]
    (x, labels), *_ = given.batches
    total = torch.zeros(12, dtype=torch.float64)
    for i in range(len(x)):
        gate = torch.ones(12, requires_grad=True)

        def scale(module: nn.Module, inputs: tuple[Tensor], gate: Tensor = gate) -> Tensor:
            shape = (1, -1) if isinstance(module, nn.Linear) else (1, -1, 1, 1)
            return inputs[0] * gate.view(shape)

        handles = [
            model.get_submodule(name).register_forward_pre_hook(scale)
            for name in ("blocks.2.expand", "classifier")
        ]
        loss = functional.cross_entropy(model(x[i : i + 1]), labels[i : i + 1])
        total += torch.autograd.grad(loss, gate)[0].double().square()
        for handle in handles:
            handle.remove()
    assert scores == pytest.approx((total / 8).numpy(), rel=1e-3)


def test_dcp_prefers_the_channels_that_tell_classes_apart() -> None:
    """Channel 2 alone carries the label, channel 5 nothing at all; the others are noise."""

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(8, 8, 1, bias=False)
            self.second = nn.Conv2d(8, 8, 1, bias=False)
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.second(self.first(x)).mean((2, 3)))
            return out

    model = seeded(Tiny)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (64,), generator=generator)
    x = torch.randn(64, 8, 4, 4, generator=generator)
    x[:, 2] = (2.0 * labels - 1.0).view(-1, 1, 1)
    with torch.no_grad():
        model.get_parameter("first.weight").copy_(torch.eye(8).view(8, 8, 1, 1))
        model.get_parameter("second.weight").copy_(0.1 * torch.eye(8).view(8, 8, 1, 1))
        model.get_parameter("second.weight")[:, 5] = 0.0
    groups = tuple(c for c in trace(model, (8, 4, 4)) if not c.is_output)
    given = Evidence(batches=[(x[:40], labels[:40]), (x[40:], labels[40:])])
    scores = DiscriminationAware().scores(model, groups, given)["first"]
    assert sorted(scores) == list(range(1, 9))
    assert scores.argmax() == 2


def test_random_depends_on_seed_and_name_only() -> None:
    model = seeded(FlattenVgg)
    groups = couplings(model)
    one = Random().scores(model, groups, Evidence(seed=1))
    assert np.array_equal(
        Random().scores(model, groups[-1:], Evidence(seed=1))["hidden"], one["hidden"]
    )
    assert not np.array_equal(
        Random().scores(model, groups, Evidence(seed=2))["hidden"], one["hidden"]
    )


class Attends(nn.Module):
    """Self-attention, which computes with the weights of a projection that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        out: Tensor = self.classifier(self.attention(tokens, tokens, tokens)[0].mean(1))
        return out


@pytest.mark.parametrize("name", ["apoz", "fisher", "dcp", "thinet", "lasso"])
def test_heads_whose_consumer_is_not_called_are_ranked_by_their_norm(name: str) -> None:
    selector = {**SELECTORS, "thinet": ThiNet(), "lasso": Lasso()}[name]
    model = seeded(Attends)
    rows = np.arange(8).reshape(4, 2)
    heads = Coupling(
        name="attention",
        channels=4,
        taps=(Tap(layer="attention.out_proj", side="in", index=rows),),
        parameters=(
            ParameterTap(
                layer="attention",
                parameter="in_proj_weight",
                axis=0,
                index=np.concatenate([rows, rows + 8, rows + 16], axis=1),
            ),
        ),
    )
    x = torch.randn(6, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    given = Evidence(batches=[(x, torch.arange(6))], calibration=[x])
    weight = model.get_parameter("attention.in_proj_weight").detach().view(3, 4, 2, 8)
    expected = weight.square().sum((0, 2, 3)).sqrt().numpy()
    assert selector.scores(model, (heads,), given)["attention"] == pytest.approx(expected)
