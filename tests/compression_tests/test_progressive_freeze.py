"""Weights freeze in portions on their grid, and blocks are pulled towards few directions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.decisions import QuantizeWeights
from compression.errors import CompressionError
from compression.primitives.codebooks import cluster_scalars
from compression.primitives.quantize_weights import WeightQuantization
from compression.primitives.weight_grids.grid import HeldWeight, zeros_of
from compression.primitives.weight_grids.levels import LevelGrid
from compression.primitives.weight_layers import weight_layer
from compression.recover.progressive_freeze import ProgressiveFreeze
from compression.recover.spectral import Clusters, SpectralPenalty, leading, residual
from tests.compression_tests.shared_weights import context_of, fine_tune, small_net


class Watched(ProgressiveFreeze):
    """Notes the frozen share of a layer after every step."""

    seen: list[float]

    def start(self, model: nn.Module, total_steps: int) -> None:
        super().start(model, total_steps)
        self.seen = [self.frozen_share("10")]
        self.first = weight_layer(model, "10").weight.detach().clone()

    def after_step(self, model: nn.Module, step: int) -> None:
        super().after_step(model, step)
        self.seen.append(self.frozen_share("10"))


def test_the_largest_freeze_first_and_stay_where_they_are() -> None:
    model = small_net()
    decision = QuantizeWeights(bits=4, quantizer="pow2")
    after, record = WeightQuantization().apply(model, {"10": decision}, context_of(model))
    hook = Watched(record.held())
    curve = fine_tune(after, [hook])
    assert curve.points[-1][1] < 0.8 * curve.points[0][1]
    shares = sorted({round(share, 3) for share in hook.seen})
    assert shares == [0.5, 0.75, 0.875, 1.0]
    assert [hook.seen.index(share) for share in (0.5, 0.75, 0.875, 1.0)] == [0, 15, 30, 45]
    origin = weight_layer(model, "10").weight.detach()
    large = origin.abs() > origin.abs().median()
    now = weight_layer(after, "10").weight.detach()
    held = record.layers["10"].held
    assert torch.equal(now[large], held.project(origin)[large])
    assert torch.equal(hook.first[~large], origin[~large])
    assert not torch.equal(now, held.project(origin))
    assert torch.equal(held.project(now), now)


def test_clusters_with_the_largest_loss_freeze_first() -> None:
    layer = nn.Linear(6, 1, bias=False)
    origin = torch.tensor([[0.0, 0.1, 0.9, 1.0, 1.4, 1.6]])
    held = HeldWeight(
        grid=LevelGrid.of(torch.tensor([[0.05, 0.95, 2.0]])), origin=origin, zeros=None
    )
    model = nn.Sequential(layer)
    hook = ProgressiveFreeze({"0": held}, shares=(0.5, 1.0), order="loss")
    hook.start(model, 10)
    # Losses: {0, 0.1} 0.005, {0.9, 1, 1.4} 0.2075, {1.6} 0.16.
    expected = [[0.0, 0.1, 0.95, 0.95, 0.95, 1.6]]
    torch.testing.assert_close(layer.weight.detach(), torch.tensor(expected), atol=2e-4, rtol=0)
    hook.finish(model)
    assert len(torch.unique(layer.weight.detach())) == 3


def test_a_codebook_can_be_frozen_progressively_and_zeros_stay() -> None:
    model = small_net()
    weight = weight_layer(model, "10").weight
    with torch.no_grad():
        weight.masked_fill_(weight.abs() < weight.abs().median(), 0.0)
    origin = weight.detach().clone()
    grid = LevelGrid.of(cluster_scalars(origin, 8).values.T)
    held = HeldWeight(grid=grid, origin=origin, zeros=zeros_of(origin))
    fine_tune(model, [ProgressiveFreeze({"10": held}, shares=(0.6, 1.0), order="loss")])
    now = weight_layer(model, "10").weight.detach()
    assert len(torch.unique(now)) <= 8
    assert torch.equal(now[origin == 0], torch.zeros(int((origin == 0).sum())))


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (0.9, 0.5, 1.0)])
def test_shares_must_ascend_to_all(shares: tuple[float, ...]) -> None:
    with pytest.raises(CompressionError, match="must ascend from above 0 to 1"):
        ProgressiveFreeze({}, shares=shares)


def test_the_spectral_penalty_is_what_the_leading_directions_leave() -> None:
    """Half lambda times the sum of the squared singular values beyond the K-th."""
    blocks = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    vectors = leading(blocks, 3)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-5, rtol=1e-5)
    expected = torch.linalg.svdvals(blocks)[3:].square().sum()
    torch.testing.assert_close(residual(blocks, vectors), expected, rtol=1e-4, atol=1e-4)
    model = nn.Sequential(nn.Linear(8, 30, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(blocks)
    hook = SpectralPenalty({"0": Clusters(block=8, entries=3)}, strength=0.1)
    hook.start(model, 5)
    torch.testing.assert_close(hook.penalty(model, 0), 0.05 * expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_the_penalty_leaves_the_leading_directions_alone() -> None:
    """`W - F F^T W` in rows, for a fixed F."""
    blocks = torch.randn(20, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    vectors = leading(blocks, 2)
    (gradient,) = torch.autograd.grad(residual(blocks, vectors) / 2, blocks)
    torch.testing.assert_close(
        gradient, blocks.detach() - vectors @ (vectors.T @ blocks.detach()), atol=1e-5, rtol=1e-5
    )


def test_the_penalty_makes_blocks_easier_to_cluster() -> None:
    left = []
    for strength in (0.0, 0.1):
        model = small_net()
        clusters = {"10": Clusters(block=32, entries=4)}
        hooks = [SpectralPenalty(clusters, strength=strength)] if strength else []
        curve = fine_tune(model, hooks)
        assert curve.points[-1][1] < curve.points[0][1]
        blocks = weight_layer(model, "10").weight.detach().reshape(-1, 32)
        left.append(float(residual(blocks, leading(blocks, 4)) / blocks.square().sum()))
    assert left[1] < 0.75 * left[0]


def test_a_penalty_that_cannot_act_is_refused() -> None:
    hook = SpectralPenalty({"10": Clusters(block=8, entries=16)})
    with pytest.raises(CompressionError, match="fewer than 8 entries and whole blocks"):
        hook.start(small_net(), 1)
    with pytest.raises(CompressionError, match="strength is 0"):
        SpectralPenalty({}, strength=0.0)


def test_hooks_go_on_where_they_were() -> None:
    model = small_net()
    weight = weight_layer(model, "10").weight.detach()
    grid = LevelGrid.of(cluster_scalars(weight, 8).values.T)
    held = {"10": HeldWeight(grid=grid, origin=weight.clone(), zeros=None)}
    first, second = ProgressiveFreeze(held), ProgressiveFreeze(held)
    first.start(model, 4)
    for step in range(2):
        first.after_step(model, step)
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second.start(small_net(), 4)
    second.load_state(state)
    assert second.frozen_share("10") == first.frozen_share("10") > 0.75
    penalty = SpectralPenalty({"10": Clusters(block=32, entries=4)})
    resumed = SpectralPenalty({"10": Clusters(block=32, entries=4)})
    penalty.penalty(model, 0)
    resumed.load_state(penalty.state())
    assert torch.equal(resumed.penalty(small_net(), 3), penalty.penalty(small_net(), 3))
