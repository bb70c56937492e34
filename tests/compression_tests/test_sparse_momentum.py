"""Global sparse momentum: the weights that matter get gradients, the others fade."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.errors import CompressionError
from compression.recover.masks import trained_weight, zeros_of
from compression.recover.sparse_momentum import SparseMomentum
from tests.compression_tests.test_masks import LAYERS, Watch, fell, fit, of, stripes_net

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_ends_at_the_number_kept_and_learns() -> None:
    model, hook, watch = stripes_net(), SparseMomentum(LAYERS, 400), Watch()
    curve = fit(model, [hook, watch])
    assert fell(curve)
    assert zeros_of(model, LAYERS) == 1600 - 400
    assert watch.zeros[:44] == [0] * 44
    assert watch.zeros[44:] == [1200] * 16
    assert all(torch.equal(of(model, name) != 0, mask) for name, mask in hook.masks.items())


def test_only_the_most_effective_weights_get_their_gradient() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        trained_weight(model, "0").copy_(torch.tensor([[1.0, 2.0]]))
        trained_weight(model, "1").copy_(torch.tensor([[-4.0], [0.5]]))
    hook = SparseMomentum(("0", "1"), 2, residue=0.25)
    hook.start(model, 3)  # the ramp is two of three steps
    trained_weight(model, "0").grad = torch.tensor([[3.0, 1.0]])  # |w g| = 3, 2
    trained_weight(model, "1").grad = torch.tensor([[0.7], [-4.0]])  # |w g| = 2.8, 2
    hook.gradients(model, 0)
    gradients = [trained_weight(model, layer).grad for layer in ("0", "1")]
    assert [g.tolist() for g in gradients if g is not None] == [
        [[3.0, 0.0]],
        [[pytest.approx(0.7)], [0.0]],
    ]
    hook.after_step(model, 0)
    # Passive weights shrink by the square root of a quarter.
    assert of(model, "0").tolist() == [[1.0, 1.0]]
    assert of(model, "1").tolist() == [[-4.0], [0.25]]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_number_is_exact_after_hardly_any_training(steps: int) -> None:
    model = stripes_net()
    fit(model, [SparseMomentum(LAYERS, 100)], steps=steps)
    assert zeros_of(model, LAYERS) == 1500


def test_a_fresh_hook_takes_the_final_masks_over() -> None:
    model, hook = stripes_net(), SparseMomentum(LAYERS, 100)
    fit(model, [hook], steps=4)
    fresh = SparseMomentum(LAYERS, 100)
    fresh.start(stripes_net(), 4)
    fresh.load_state(hook.state())
    other = stripes_net(seed=1)
    fresh.finish(other)
    assert all(torch.equal(of(other, name) != 0, mask) for name, mask in hook.masks.items())


def test_refusals() -> None:
    with pytest.raises(CompressionError, match="0 weights are kept; at least 1"):
        SparseMomentum(LAYERS, 0)
    with pytest.raises(CompressionError, match="residue is 0"):
        SparseMomentum(LAYERS, 1, residue=0)
    with pytest.raises(CompressionError, match="1600 weights are to be kept; the layers have 1600"):
        SparseMomentum(LAYERS, 1600).start(stripes_net(), 1)
