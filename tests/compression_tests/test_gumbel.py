"""Relaxed choices and channel interpolation, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from compression.errors import CompressionError
from compression.supernets.channel_interpolation import (
    interpolate_channels,
    interpolation_matrix,
)
from compression.supernets.gumbel import (
    gap,
    gumbel_noise,
    relaxed,
    sample_two,
    temperature,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("values", "channels", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2, [1.5, 3.5]),
        ([1.0, 2.0], 4, [1.0, 1.0, 2.0, 2.0]),
        # Windows [0, 2) and [1, 3): the middle channel is in both.
        ([1.0, 2.0, 6.0], 2, [1.5, 4.0]),
        # Windows [0, 1), [0, 2), [1, 2).
        ([1.0, 3.0], 3, [1.0, 2.0, 3.0]),
        ([5.0, 7.0, 9.0], 3, [5.0, 7.0, 9.0]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1, [3.0]),
    ],
)
def test_channels_are_interpolated_by_hand(
    values: list[float], channels: int, expected: list[float]
) -> None:
    features = torch.tensor(values).view(1, -1, 1, 1).expand(2, -1, 3, 2)
    found = interpolate_channels(features, channels)
    assert found.shape == (2, channels, 3, 2)
    assert torch.allclose(found[1, :, 2, 1], torch.tensor(expected))


@pytest.mark.parametrize(("before", "after"), [(3, 16), (16, 3), (7, 5), (5, 7), (4, 8), (1, 3)])
def test_interpolation_is_its_window_means_and_its_matrix(before: int, after: int) -> None:
    features = torch.randn(2, before, 4, 3, generator=generator())
    by_hand = torch.stack(
        [
            features[:, j * before // after : math.ceil((j + 1) * before / after)].mean(1)
            for j in range(after)
        ],
        dim=1,
    )
    matrix = interpolation_matrix(before, after)
    assert torch.allclose(interpolate_channels(features, after), by_hand, atol=1e-6)
    assert torch.allclose(torch.einsum("jc,bchw->bjhw", matrix, features), by_hand, atol=1e-6)
    assert torch.allclose(matrix.sum(1), torch.ones(after))


def test_temperatures_meet_both_ends() -> None:
    assert temperature("linear", 0, 11) == 10.0
    assert temperature("linear", 5, 11) == pytest.approx(5.05)
    assert temperature("linear", 10, 11) == pytest.approx(0.1)
    assert temperature("cosine", 0, 11) == 5.0
    assert temperature("cosine", 5, 11) == pytest.approx(2.55)
    assert temperature("cosine", 10, 11) == pytest.approx(0.1)
    assert temperature("linear", 0, 1) == 10.0
    assert temperature("brief", 0, 11) == 1.0
    assert temperature("brief", 5, 11) == pytest.approx(0.55)
    assert temperature("brief", 10, 11) == pytest.approx(0.1)


def test_a_relaxed_choice_by_hand() -> None:
    logits = torch.log(torch.tensor([0.2, 0.8], dtype=torch.float64)) + 3.0
    noise = torch.tensor([1.0, -1.0], dtype=torch.float64)
    a, b = 0.2 * math.e, 0.8 / math.e
    assert relaxed(logits, noise, 1.0)[0].item() == pytest.approx(a / (a + b))
    assert relaxed(logits, noise, 0.5)[0].item() == pytest.approx(a**2 / (a**2 + b**2))


def test_two_weights_are_those_of_the_sample_renormalised() -> None:
    logits = torch.tensor([0.1, -0.4, 0.9, 0.0], dtype=torch.float64)
    noise = gumbel_noise(4, generator(7))
    for tau in (10.0, 1.0, 0.1):
        pair = sample_two(logits, tau, generator(7))
        p = relaxed(logits, noise, tau)[list(pair.indices)]
        assert pair.weights.tolist() == pytest.approx((p / p.sum()).tolist(), rel=1e-9)
        assert pair.indices == tuple(sorted(set(pair.indices)))


def test_pairs_are_drawn_without_replacement_at_the_right_rates() -> None:
    # At a high temperature every pair of three is equally likely.
    logits = torch.zeros(3, dtype=torch.float64)
    source = generator(1)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(3000):
        indices = sample_two(logits, 50.0, source).indices
        counts[indices] = counts.get(indices, 0) + 1
    assert set(counts) == {(0, 1), (0, 2), (1, 2)}
    assert min(counts.values()) > 900


def test_at_low_temperatures_two_are_still_drawn_and_gradients_are_finite() -> None:
    logits = torch.tensor([40.0, 0.0, -40.0], dtype=torch.float64, requires_grad=True)
    for seed in range(20):
        pair = sample_two(logits, 1e-3, generator(seed))
        assert len(pair.indices) == 2
        (gradient,) = torch.autograd.grad(pair.weights[0], logits)
        assert bool(torch.isfinite(gradient).all())


def test_weights_carry_gradients_to_the_logits() -> None:
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    pair = sample_two(logits, 2.0, generator())
    (gradient,) = torch.autograd.grad(pair.weights[0], logits)
    a, b = pair.weights.detach()
    assert gradient[pair.indices[0]].item() == pytest.approx(float(a * b) / 2.0)
    assert gradient[pair.indices[1]].item() == pytest.approx(-float(a * b) / 2.0)


def test_a_single_choice_has_weight_one() -> None:
    pair = sample_two(torch.zeros(1, dtype=torch.float64), 1.0, generator())
    assert (pair.indices, pair.weights.tolist()) == ((0,), [1.0])
    assert gap(torch.zeros(1)) == 1.0


def test_the_gap_is_between_the_two_most_probable() -> None:
    logits = torch.log(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))
    assert gap(logits) == pytest.approx(0.2)


def test_noise_is_finite_and_has_the_mean_of_a_gumbel() -> None:
    noise = gumbel_noise(20_000, generator())
    assert bool(torch.isfinite(noise).all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CompressionError, match="not finite"):
        sample_two(torch.tensor([0.0, math.nan], dtype=torch.float64), 1.0, generator())
