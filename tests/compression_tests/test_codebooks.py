"""Codebooks are what their formulas say: optimal in one dimension, monotone in several."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compression.primitives import codebooks
from compression.primitives.codebooks import clamp_entries, cluster_scalars, optimal_centroids
from compression.primitives.product_codebooks import (
    block_size,
    blocks_by_position,
    cluster_blocks,
    row_major,
    second_moments,
)
from compression.primitives.weight_layers import half
from compression.recover.codebook_hold import HoldCodebooks, SharedWeight


def least_error(values: list[float], entries: int) -> float:
    """Try every partition of the sorted values into runs."""
    ordered = sorted(values)
    best = float("inf")
    for cuts in itertools.combinations(range(1, len(ordered)), entries - 1):
        runs = [ordered[a:b] for a, b in itertools.pairwise((0, *cuts, len(ordered)))]
        means = [sum(run) / len(run) for run in runs]
        errors = (sum((v - m) ** 2 for v in run) for run, m in zip(runs, means, strict=True))
        best = min(best, sum(errors))
    return best


def error(values: Tensor, centroids: Tensor) -> float:
    return float((values[:, None] - centroids[None]).abs().amin(1).square().sum())


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-40, 40), min_size=4, max_size=9, unique=True),
    entries=st.integers(1, 4),
)
def test_scalars_are_clustered_optimally(values: list[int], entries: int) -> None:
    numbers = [value / 7 for value in values]
    found = optimal_centroids(torch.tensor(numbers, dtype=torch.float64), entries)
    got = error(torch.tensor(numbers, dtype=torch.float64), found)
    assert got == pytest.approx(least_error(numbers, entries), abs=1e-9)


def test_beyond_the_limit_the_error_is_nearly_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = error(values, optimal_centroids(values, 16))
    monkeypatch.setattr(codebooks, "EXACT_LIMIT", 8000)
    sampled = error(values, optimal_centroids(values, 16))
    assert exact <= sampled <= 1.02 * exact


def test_zeros_are_an_entry_of_their_own_that_counts() -> None:
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    weight[:, ::2] = 0
    book = cluster_scalars(weight, 5)
    made = book.weight(weight.shape)
    assert book.zero
    assert len(book.values) == 5
    assert float(book.values[0]) == 0.0
    assert torch.equal(made == 0, weight == 0)
    assert torch.equal(half(made), made)


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        (torch.zeros(4, 4), [0.0]),
        (torch.full((4, 4), 0.5), [0.5]),
        (torch.tensor([[1e-12, 0.0, 1.0, 1.0]]), [0.0, 1.0]),
        (torch.tensor([[0.25, 0.5, 0.25, -1.0]]), [-1.0, 0.25, 0.5]),
    ],
)
def test_few_values_are_kept_exactly(weight: Tensor, values: list[float]) -> None:
    book = cluster_scalars(weight, 4)
    assert book.values[:, 0].tolist() == values
    assert torch.equal(book.weight(weight.shape), half(weight))


def test_small_layers_get_fewer_entries() -> None:
    assert clamp_entries(256, 16 * 16) == 64
    assert clamp_entries(16, 10_000) == 16
    assert clamp_entries(256, 4) == 2


def test_blocks_divide_rows() -> None:
    assert block_size(144, 9) == 9
    assert block_size(64, 9) == 8
    assert block_size(27, 18) == 9
    assert block_size(13, 9) == 1


LAYERS: tuple[tuple[nn.Module, tuple[int, ...], int], ...] = (
    (nn.Linear(12, 10), (5, 12), 4),
    (nn.Linear(12, 10), (2, 3, 12), 6),
    (nn.Conv2d(4, 6, 3, padding=1, bias=False), (3, 4, 5, 5), 9),
    (nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False), (3, 4, 6, 6), 18),
    (nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False), (3, 4, 7, 7), 9),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4), (3, 4, 5, 5), 9),
    (nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False), (18, 4, 5, 5), 3),
)


@pytest.mark.parametrize(("layer", "shape", "block"), LAYERS)
def test_moments_give_the_error_of_the_outputs(
    layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], block: int
) -> None:
    """Changing one block changes the outputs by `delta^T A delta` in sum of squares."""
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    blocks = blocks_by_position(layer, block)
    moments = second_moments(layer, inputs, block)
    assert moments is not None
    assert moments.shape == (len(blocks), block, block)
    ratios = []
    with torch.no_grad():
        before = layer(inputs)
        for position, row in ((0, 0), (len(blocks) - 1, blocks.shape[1] - 1)):
            delta = torch.zeros_like(blocks)
            delta[position, row] = torch.arange(1.0, block + 1)
            change = torch.zeros_like(layer.weight).reshape(-1, block)
            where = torch.arange(blocks.shape[0] * blocks.shape[1])
            index = torch.empty_like(where)
            index[:] = row_major(layer, where.reshape(blocks.shape[:2]))
            change[:] = delta.reshape(-1, block)[index]
            former = layer.weight.clone()
            layer.weight += change.reshape(former.shape)
            measured = float((layer(inputs) - before).square().sum())
            layer.weight.copy_(former)
            vector = delta[position, row]
            ridge = 0.01 * float(vector @ vector)
            ratios.append((float(vector @ moments[position] @ vector) - ridge) / measured)
    # Moments are scaled by one number for the whole layer.
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-3)


def test_layers_without_moments_are_left_to_plain_distances() -> None:
    assert second_moments(nn.Conv1d(4, 4, 3), torch.randn(2, 4, 9), 3) is None
    assert second_moments(nn.Linear(4, 4), torch.zeros(2, 4), 4) is None


def test_blocks_come_back_in_row_major_order() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    blocks = blocks_by_position(layer, 9)
    flat = torch.stack([row_major(layer, blocks[:, :, i]) for i in range(9)], dim=1)
    assert torch.equal(flat.reshape(layer.weight.shape), layer.weight.detach())


@pytest.mark.parametrize("weighted", [False, True])
def test_no_iteration_raises_the_error(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(6, 40, 4, generator=generator)
    spread = torch.randn(6, 4, 4, generator=generator)
    metrics = spread @ spread.transpose(1, 2) + 0.1 * torch.eye(4) if weighted else None
    found = cluster_blocks(blocks, metrics, 16, torch.Generator().manual_seed(0))
    assert len(found.errors) > 3
    for before, after in itertools.pairwise(found.errors):
        assert after <= before * (1 + 1e-5)
    assert torch.equal(half(found.values), found.values)
    again = cluster_blocks(blocks, metrics, 16, torch.Generator().manual_seed(0))
    assert torch.equal(again.values, found.values)


def test_a_metric_decides_what_is_near() -> None:
    """Two clusters along the axis that the inputs use; the other axis is noise of ten times."""
    generator = torch.Generator().manual_seed(0)
    side = torch.arange(60) % 2
    blocks = torch.stack([side.float(), 10 * torch.randn(60, generator=generator)], dim=1)[None]
    metric = torch.diag(torch.tensor([1.0, 1e-5]))[None]
    plain = cluster_blocks(blocks, None, 2, torch.Generator().manual_seed(0))
    weighted = cluster_blocks(blocks, metric, 2, torch.Generator().manual_seed(0))
    assert sorted(weighted.values[:, 0].tolist()) == [0.0, 1.0]
    assert sorted(plain.values[:, 0].tolist()) != [0.0, 1.0]


def test_entries_solve_the_weighted_least_squares() -> None:
    """With one entry: c = (sum A)^-1 sum A v, and moving it any way is worse."""
    generator = torch.Generator().manual_seed(2)
    blocks = torch.randn(3, 5, 2, generator=generator)
    spread = torch.randn(3, 2, 2, generator=generator)
    metrics = spread @ spread.transpose(1, 2) + 0.5 * torch.eye(2)
    found = cluster_blocks(blocks, metrics, 1, generator)
    sums = (metrics @ blocks.sum(1)[:, :, None]).sum(0)[:, 0]
    expected = torch.linalg.solve(5 * metrics.sum(0), sums)
    torch.testing.assert_close(found.values[0], expected, atol=1e-3, rtol=1e-3)


def test_the_gradient_of_an_entry_is_that_of_the_chain_rule() -> None:
    layer = nn.Linear(6, 4, bias=False)
    model = nn.Sequential(layer)
    generator = torch.Generator().manual_seed(0)
    assignments = torch.randint(3, (8,), generator=generator)
    entries = torch.randn(3, 3, generator=generator, requires_grad=True)
    x, y = torch.randn(9, 6, generator=generator), torch.randn(9, 4, generator=generator)
    shared = {"0": SharedWeight(block=3, assignments=assignments)}
    torch.autograd.backward(functional.mse_loss(x @ entries[assignments].reshape(4, 6).T, y))
    assert entries.grad is not None
    counts = torch.bincount(assignments, minlength=3)[:, None]
    for mode, expected in (("sum", entries.grad), ("mean", entries.grad / counts)):
        with torch.no_grad():
            layer.weight.copy_(entries[assignments].reshape(4, 6))
        layer.weight.grad = None
        torch.autograd.backward(functional.mse_loss(model(x), y))
        hook = HoldCodebooks(shared, gradient=mode)  # type: ignore[arg-type]
        hook.start(model, 1)
        hook.gradients(model, 0)
        assert layer.weight.grad is not None
        torch.testing.assert_close(
            layer.weight.grad.reshape(-1, 3), expected[assignments], atol=1e-6, rtol=1e-5
        )


def test_steps_are_those_of_an_optimizer_on_the_entries() -> None:
    """With momentum, weight decay and a clip, which sees each entry as often as it has members."""
    generator = torch.Generator().manual_seed(0)
    assignments = torch.randint(3, (8,), generator=generator)
    counts = torch.bincount(assignments, minlength=3)[:, None]
    entries = nn.Parameter(torch.randn(3, 3, generator=generator))
    layer = nn.Linear(6, 4, bias=False)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.copy_(entries[assignments].reshape(4, 6))
    settings_of_both: dict[str, Any] = {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "nesterov": True,
    }
    ours = torch.optim.SGD(model.parameters(), **settings_of_both)
    theirs = torch.optim.SGD([entries], **settings_of_both)
    hook = HoldCodebooks({"0": SharedWeight(block=3, assignments=assignments)})
    hook.start(model, 4)
    for step in range(4):
        x, y = torch.randn(9, 6, generator=generator), torch.randn(9, 4, generator=generator)
        ours.zero_grad()
        torch.autograd.backward(functional.mse_loss(model(x), y))
        hook.gradients(model, step)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        ours.step()
        hook.after_step(model, step)
        theirs.zero_grad()
        torch.autograd.backward(functional.mse_loss(x @ entries[assignments].reshape(4, 6).T, y))
        assert entries.grad is not None
        entries.grad /= counts
        norm = float((counts * entries.grad.square()).sum().sqrt())
        assert norm > 0.1
        entries.grad *= 0.1 / norm
        theirs.step()
        torch.testing.assert_close(
            layer.weight.detach().reshape(-1, 3), entries.detach()[assignments]
        )
        buffer = ours.state[layer.weight]["momentum_buffer"].reshape(-1, 3)
        torch.testing.assert_close(
            buffer, theirs.state[entries]["momentum_buffer"][assignments], atol=1e-6, rtol=1e-5
        )
