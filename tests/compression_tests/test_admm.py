"""Projections are nearest points; ADMM pulls a training into their sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compression.errors import CompressionError
from compression.preprocess import preprocess
from compression.recover.admm import STAGES, Admm
from compression.recover.masks import trained_weight
from compression.recover.projections import (
    Projection,
    largest_columns,
    largest_filters,
    largest_weights,
    low_rank,
    n_of_m,
    uniform_grid,
)
from tests.compression_tests.test_masks import LAYERS, fit, of, stripes, stripes_net

pytestmark = pytest.mark.usefixtures("one_thread")


PROJECTIONS: dict[str, Projection] = {
    "weights": largest_weights(4),
    "filters": largest_filters(2),
    "columns": largest_columns(2),
    "n:m": n_of_m(1, 2),
    "grid": uniform_grid(0.5, 3),
    "grid by filter": uniform_grid(torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1, 1), 2),
    "rank": low_rank(1),
}


def some(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PROJECTIONS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_projection_stays_where_it_is_and_leaves_its_input_alone(name: str, seed: int) -> None:
    weight = some(seed, 3, 2, 1, 2)
    before = weight.clone()
    once = PROJECTIONS[name](weight)
    assert torch.equal(weight, before)
    assert once.shape == weight.shape
    assert once.data_ptr() != weight.data_ptr()
    torch.testing.assert_close(PROJECTIONS[name](once), once)
    turned = weight.to(memory_format=torch.channels_last)
    torch.testing.assert_close(PROJECTIONS[name](turned), once)


def nearest_by_trying(weight: Tensor, masks: list[Tensor]) -> float:
    """Return the least squared distance to what the masks leave of the weight."""
    return min(float((weight - weight * mask).square().sum()) for mask in masks)


def all_masks(shape: tuple[int, int], axis: int | None, kept: int) -> list[Tensor]:
    rows, columns = shape
    count = rows * columns if axis is None else shape[axis]
    masks = []
    for places in itertools.combinations(range(count), kept):
        line = torch.zeros(count)
        line[list(places)] = 1
        if axis is None:
            masks.append(line.view(shape))
        else:
            masks.append((line[:, None] if axis == 0 else line[None]).expand(shape))
    return masks


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_zeros_are_where_trying_all_places_puts_them(seed: int) -> None:
    weight = some(seed, 3, 4)
    pairs = [
        torch.tensor([choice] * 1).float()
        for choice in itertools.product(((1.0, 0.0), (0.0, 1.0)), repeat=6)
    ]
    cases = {
        "weights": (largest_weights(3), all_masks((3, 4), None, 3)),
        "filters": (largest_filters(2), all_masks((3, 4), 0, 2)),
        "columns": (largest_columns(2), all_masks((3, 4), 1, 2)),
        "n:m": (n_of_m(1, 2), [pair.view(3, 4) for pair in pairs]),
    }
    for name, (project, masks) in cases.items():
        found = float((weight - project(weight)).square().sum())
        assert found == pytest.approx(nearest_by_trying(weight, masks), rel=1e-5), name


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 4))
@settings(max_examples=15, deadline=None)
def test_the_grid_is_reached_at_its_nearest_point(seed: int, bits: int) -> None:
    weight, scale = some(seed, 5), 0.3
    most = 2 ** (bits - 1) - 1
    levels = torch.arange(-most, most + 1) * scale
    expected = levels[(weight[:, None] - levels).abs().argmin(1)]
    torch.testing.assert_close(uniform_grid(scale, bits)(weight), expected)
    assert not bool(torch.signbit(uniform_grid(scale, bits)(torch.tensor([-0.1]))).any())


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_no_matrix_of_the_rank_is_nearer(seed: int) -> None:
    weight = some(seed, 2, 2)
    found = float((weight - low_rank(1)(weight)).norm())
    # Rank one in two dimensions is s u v^T: for every u the best s v is W^T u.
    angles = torch.linspace(0, torch.pi, 2001)
    units = torch.stack([angles.cos(), angles.sin()], 1)
    residues = weight - torch.einsum("ai,aj->aij", units, units @ weight)
    assert found <= float(residues.flatten(1).norm(dim=1).min()) + 1e-5
    assert found == pytest.approx(float(torch.linalg.svdvals(weight)[1]), abs=1e-5)


def test_more_than_there_is_changes_nothing() -> None:
    weight = some(0, 3, 4)
    for project in (largest_weights(99), largest_filters(9), largest_columns(9), low_rank(9)):
        torch.testing.assert_close(project(weight), weight)


def loss(model: nn.Module) -> float:
    """Return the loss without penalties, with batch statistics."""
    data = stripes()
    assert data.labels is not None
    with torch.no_grad():
        logits = model.train()(preprocess(data.images, data.preprocessing))
    return float(functional.cross_entropy(logits, torch.from_numpy(data.labels)))


STRONG = (0.01, 0.1, 1.0, 10.0)


@pytest.mark.parametrize(
    ("project", "holds"),
    [
        (largest_weights(300), lambda w: int((w != 0).sum()) == 300),
        (largest_filters(5), lambda w: int((w.flatten(1).abs().sum(1) > 0).sum()) == 5),
        (n_of_m(2, 4), lambda w: int((w.reshape(-1, 4) != 0).sum(1).max()) == 2),
        (uniform_grid(0.05, 4), lambda w: len((w / 0.05).round().unique()) <= 15),
        (low_rank(3), lambda w: int(torch.linalg.matrix_rank(w.flatten(1), rtol=1e-4)) == 3),
    ],
)
def test_a_training_ends_in_the_set(project: Projection, holds: Callable[[Tensor], bool]) -> None:
    model = stripes_net()
    hook = Admm(dict.fromkeys(LAYERS, project), every=5, stages=STRONG)
    before = loss(stripes_net())
    fit(model, [hook], steps=80)
    assert loss(model) < before
    for layer in LAYERS:
        assert holds(of(model, layer)), layer
        torch.testing.assert_close(project(of(model, layer)), of(model, layer))


def test_admm_arrives_closer_to_the_set_than_plain_training() -> None:
    projections = dict.fromkeys(LAYERS, largest_weights(200))
    pulled = Admm(projections, every=5, stages=STRONG)
    fit(stripes_net(), [pulled], steps=80)
    loose = Admm(projections, every=5, stages=(1e-9,))
    fit(stripes_net(), [loose], steps=80)
    assert 0 < pulled.gap < 0.5 * loose.gap


def test_the_updates_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))

    def put(*values: float) -> None:
        with torch.no_grad():
            trained_weight(model, "0").copy_(torch.tensor([values]))

    put(1.0, 3.0)
    hook = Admm({"0": largest_weights(1)}, every=1, stages=(0.5, 1.0))
    hook.start(model, 4)
    # Z = (0, 3), U = 0: rho/2 (1^2 + 0^2).
    penalty = hook.penalty(model, 0)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.25)
    put(1.0, 2.0)
    hook.after_step(model, 0)
    # Z = P(1, 2) = (0, 2); U = (1, 0).
    assert hook.state()["target.0"].tolist() == [[0.0, 2.0]]
    assert hook.state()["dual.0"].tolist() == [[1.0, 0.0]]
    put(1.5, 2.0)
    hook.after_step(model, 1)
    # W + U = (2.5, 2): Z = (2.5, 0); U = (1, 0) + (1.5, 2) - (2.5, 0) = (0, 2).
    assert hook.state()["target.0"].tolist() == [[2.5, 0.0]]
    assert hook.state()["dual.0"].tolist() == [[0.0, 2.0]]
    # rho doubles in the second half, so U halves: 1/2 ((1.5 - 2.5)^2 + (2 + 1)^2).
    penalty = hook.penalty(model, 2)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(5.0)
    gradient = torch.autograd.grad(penalty, trained_weight(model, "0"))[0]
    assert gradient.tolist() == [[-1.0, 3.0]]
    fresh = Admm({"0": largest_weights(1)}, every=1, stages=(0.5, 1.0))
    fresh.start(model, 4)
    fresh.load_state(hook.state())
    again = fresh.penalty(model, 3)
    assert again is not None
    assert float(again.detach()) == pytest.approx(5.0)
    hook.finish(model)
    assert of(model, "0").tolist() == [[0.0, 2.0]]
    assert hook.gap == pytest.approx(1.5 / 2.5)


def test_refusals() -> None:
    assert list(STAGES) == sorted(STAGES)
    with pytest.raises(CompressionError, match="every is 0 steps"):
        Admm({}, every=0)
    with pytest.raises(CompressionError, match="Stages of rho"):
        Admm({}, stages=())
    with pytest.raises(CompressionError, match="Layer 'gone' is not in the model"):
        Admm({"gone": low_rank(1)}).start(stripes_net(), 1)
    with pytest.raises(CompressionError, match="0 rank; at least 1"):
        low_rank(0)
    with pytest.raises(CompressionError, match="1 bits; at least 2"):
        uniform_grid(0.1, 1)
    assert Admm({}).penalty(stripes_net(), 0) is None
