"""Windows, contributions, and the selectors that look at the next layer's outputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from compression.coupling import Coupling
from compression.errors import PlanInvalid
from compression.graph import trace
from compression.selectors.contributions import gram_matrices
from compression.selectors.lasso import Lasso, entry_penalties
from compression.selectors.selector import Evidence, Selector
from compression.selectors.thinet import ThiNet, removal_order
from compression.selectors.windows import draw_positions, filters, outputs_at, windows
from tests.builders import SHAPE, ConcatNet, FlattenVgg, MobileNet, seeded

SELECTORS: dict[str, Selector] = {"thinet": ThiNet(), "lasso": Lasso()}


def inputs(count: int = 2, images: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(images, *SHAPE, generator=generator) for _ in range(count)]


def couplings(model: nn.Module) -> tuple[Coupling, ...]:
    return tuple(c for c in trace(model, SHAPE) if not c.is_output)


LAYERS = [
    (nn.Conv2d(3, 5, 3, stride=2, padding=1), (4, 3, 9, 8)),
    (nn.Conv2d(3, 5, (3, 2), dilation=(2, 1), bias=False), (4, 3, 9, 8)),
    (nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect"), (4, 3, 9, 8)),
    (nn.Conv2d(3, 5, (5, 1), padding="same"), (4, 3, 9, 8)),
    (nn.Conv1d(3, 5, 3, stride=3, padding=2), (4, 3, 11)),
    (nn.Conv3d(3, 5, 2, stride=(1, 2, 1)), (4, 3, 4, 5, 6)),
    (nn.Linear(3, 5), (4, 3)),
    (nn.Linear(3, 5, bias=False), (4, 7, 2, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
@pytest.mark.parametrize("per_image", [6, 10_000])
def test_filters_times_windows_are_the_outputs(
    layer: nn.Module, shape: tuple[int, ...], per_image: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    positions = draw_positions(layer, x, per_image, generator)
    with torch.no_grad():
        expected = outputs_at(layer, layer(x), positions)
        actual = windows(layer, x, positions).flatten(1) @ filters(layer).flatten(1).T
    if layer.bias is not None:
        actual = actual + layer.get_parameter("bias").detach()
    assert torch.allclose(actual, expected, atol=1e-5)
    if per_image == 10_000:
        with torch.no_grad():
            assert len(expected) == layer(x).numel() // 5


def test_windows_do_not_mind_memory_layout() -> None:
    layer = nn.Conv2d(3, 5, 3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 35], [7, 7]])
    strided = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(windows(layer, x, positions), windows(layer, strided, positions))


def test_gram_is_the_covariance_of_what_the_channels_give() -> None:
    model = seeded(FlattenVgg)
    x = inputs()
    found = gram_matrices(model, couplings(model), Evidence(calibration=x), "thinet")
    # `features.4` is flattened into `hidden`, one position per image: nothing is sampled.
    with torch.no_grad():
        flat = model.get_submodule("features")(torch.cat(x)).flatten(2)  # n x 20 x 16
    weight = model.get_parameter("hidden.weight").detach().view(24, 20, 16)
    z = torch.einsum("ncp,ocp->cno", flat, weight).double()
    z = (z - z.mean(1, keepdim=True)).flatten(1)
    expected = z @ z.T
    assert found["features.4"] == pytest.approx((expected / expected.trace()).numpy(), abs=1e-6)


def test_gram_does_not_depend_on_batches_or_on_other_sites() -> None:
    model = seeded(FlattenVgg)
    groups = couplings(model)
    x = inputs(1, 12)
    whole = gram_matrices(model, groups, Evidence(calibration=x), "thinet")
    alone = gram_matrices(model, groups[:1], Evidence(calibration=x), "thinet")
    parts = gram_matrices(model, groups, Evidence(calibration=torch.split(x[0], 5)), "thinet")
    assert np.array_equal(whole[groups[0].name], alone[groups[0].name])
    assert parts["hidden"] == pytest.approx(whole["hidden"], abs=1e-6)


def _random_gram(seed: int, channels: int) -> NDArray[np.float64]:
    z = np.random.default_rng(seed).normal(size=(channels, 3 * channels))
    z[-1] = 0.3 * z[0] + 0.5 * z[1]
    return np.asarray(z @ z.T)


@given(seed=st.integers(0, 10_000), channels=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_removal_is_greedy_in_the_error_of_what_is_gone(seed: int, channels: int) -> None:
    gram = _random_gram(seed, channels)
    places = removal_order(gram)
    gone: list[int] = []
    for place in range(channels):
        errors = {
            c: gram[np.ix_([*gone, c], [*gone, c])].sum() for c in range(channels) if c not in gone
        }
        best = min(errors, key=lambda c: errors[c])
        assert places[best] == place
        gone.append(best)


def _lasso(gram: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Coordinate descent on 1/2 (1 - b)' G (1 - b) + penalty |b|_1."""
    target, beta = gram.sum(1), np.zeros(len(gram))
    for _ in range(3000):
        for c in range(len(gram)):
            rest = target[c] - gram[c] @ beta + gram[c, c] * beta[c]
            beta[c] = np.sign(rest) * max(abs(rest) - penalty, 0.0) / gram[c, c]
    return beta


@given(seed=st.integers(0, 10_000), channels=st.integers(2, 7))
@settings(max_examples=15, deadline=None)
def test_entry_penalties_agree_with_coordinate_descent(seed: int, channels: int) -> None:
    gram = _random_gram(seed, channels)
    entered = entry_penalties(gram)
    ordered = np.sort(entered)
    assert entered.max() == pytest.approx(np.abs(gram.sum(1)).max())
    for low, high in itertools.pairwise(ordered):
        if high - low < 1e-3 * ordered[-1]:
            continue
        # Between two entries, exactly those that came before may take part.
        beta = _lasso(gram, (low + high) / 2)
        assert {int(c) for c in np.flatnonzero(np.abs(beta) > 1e-7)} <= {
            int(c) for c in np.flatnonzero(entered >= high)
        }
    assert (np.abs(_lasso(gram, entered.max() * 1.001)) < 1e-9).all()


def test_lasso_on_uncorrelated_channels_is_their_energy() -> None:
    assert entry_penalties(np.diag([3.0, 0.0, 7.0, 1.0])) == pytest.approx([3.0, 0.0, 7.0, 1.0])


def test_lasso_takes_one_of_two_equal_channels_first() -> None:
    z = np.random.default_rng(0).normal(size=(3, 50))
    z[2] = z[0]
    entered = entry_penalties(z @ z.T)
    assert np.isfinite(entered).all()
    assert (entered > 0).sum() >= 2


@pytest.mark.parametrize("name", list(SELECTORS))
def test_channels_without_effect_go_first_in_every_structure(name: str) -> None:
    model = seeded(MobileNet)
    with torch.no_grad():
        for consumer in ("blocks.0.expand", "blocks.1.expand"):
            model.get_parameter(f"{consumer}.weight")[:, 3] = 0.0
    scores = SELECTORS[name].scores(model, couplings(model), Evidence(calibration=inputs()))
    assert scores["stem"].argmin() == 3
    assert all(np.isfinite(score).all() and (score >= 0).all() for score in scores.values())


def test_constant_channels_go_before_varying_ones() -> None:
    model = seeded(FlattenVgg)
    with torch.no_grad():
        model.get_parameter("hidden.weight")[4] = 0.0
        model.get_parameter("hidden.bias").fill_(30.0)
        model.get_parameter("hidden.bias")[4] = 900.0
    evidence = Evidence(calibration=inputs())
    assert ThiNet().scores(model, couplings(model), evidence)["hidden"].argmin() == 4
    entered = Lasso().scores(model, couplings(model), evidence)["hidden"]
    assert entered[4] <= 1e-9 * entered.max()


@pytest.mark.parametrize("name", list(SELECTORS))
def test_a_channel_that_arrives_twice_counts_twice(name: str) -> None:
    model = seeded(ConcatNet)
    scores = SELECTORS[name].scores(model, couplings(model), Evidence(calibration=inputs()))
    assert scores["left"].shape == (5,)
    assert len(set(scores["left"])) == 5


@pytest.mark.parametrize("name", list(SELECTORS))
def test_training_mode_and_flags_are_left_alone(name: str) -> None:
    model = seeded(MobileNet)
    groups = couplings(model)
    evidence = Evidence(calibration=inputs(1))
    expected = SELECTORS[name].scores(model, groups, evidence)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.train()
    model.blocks[0].eval()  # type: ignore[index, union-attr]
    again = SELECTORS[name].scores(model, groups, evidence)
    assert all(np.array_equal(expected[site], again[site]) for site in expected)
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert model.training
    assert not model.get_submodule("blocks.0.norm1").training
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", list(SELECTORS))
def test_absent_inputs_are_named(name: str) -> None:
    model = seeded(FlattenVgg)
    with pytest.raises(PlanInvalid, match=f"'{name}' needs calibration inputs; there are none"):
        SELECTORS[name].scores(model, couplings(model), Evidence())
