from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.coupling import Indices
from compression.errors import PlanInvalid
from compression.graph import trace
from compression.primitives.refit import RIDGE, fit_layer, refit
from compression.surgery import Cut, cuts_of, thin
from tests.builders import PRUNABLE, SHAPE, FlattenVgg, MobileNet, SharedNet, seeded


def inputs(count: int = 2, images: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(images, *SHAPE, generator=generator) for _ in range(count)]


def halved(model: nn.Module) -> tuple[nn.Module, dict[str, Cut]]:
    """Return a copy with an uneven half of every coupling, and the cuts."""
    rng = np.random.default_rng(0)
    groups = [c for c in trace(model, SHAPE) if not c.is_output and c.obstacle is None]
    kept: dict[str, Indices] = {
        c.name: np.sort(rng.permutation(c.channels)[: c.channels - c.channels // 2]) for c in groups
    }
    cuts = cuts_of(model, groups, kept)
    return thin(model, cuts), cuts


def outputs(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: found.append(output.detach())
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_fitted_as_numpy_does(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(400, 6, generator=generator) + 1.0
    targets = torch.randn(400, 3, generator=generator) + seen[:, :3]
    layer = seeded(lambda: nn.Linear(6, 3, bias=bias))
    before = layer.get_parameter("weight").detach().double().numpy().copy()
    fit_layer(layer, seen, targets)
    x, y = seen.double().numpy(), targets.double().numpy()
    if bias:
        x, y = x - x.mean(0), y - y.mean(0)
    penalty = np.sqrt(RIDGE * np.square(x).sum(0).mean())
    stacked = np.vstack([x, penalty * np.eye(6)])
    expected = np.linalg.lstsq(stacked, np.vstack([y, penalty * before.T]), rcond=None)[0].T
    weight = layer.get_parameter("weight").detach()
    assert weight.numpy() == pytest.approx(expected, abs=1e-4)
    if bias:
        mean = (targets - seen @ weight.T).mean(0)
        assert torch.allclose(layer.get_parameter("bias"), mean, atol=1e-5)


def test_channels_that_others_can_replace_are_not_missed() -> None:
    model = seeded(FlattenVgg)
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = model.get_parameter(f"hidden.{name}")
            parameter[12:] = 2.0 * parameter[:12]
    kept: dict[str, Indices] = {"hidden": np.arange(12)}
    groups = trace(model, SHAPE)
    cuts = cuts_of(model, groups, kept)
    thinned = thin(model, cuts)
    x = torch.cat(inputs(8))
    with torch.no_grad():
        expected = model(x)
        before = float((thinned(x) - expected).abs().max())
        refit(model, thinned, cuts, inputs(8))
        after = float((thinned(x) - expected).abs().max())
    assert before > 0.5
    # What is left is the pull of the ridge penalty.
    assert after < 0.02 * before


@pytest.mark.parametrize("name", [name for name in PRUNABLE if name != "resnet20"])
def test_every_refitted_layer_comes_nearer_and_nothing_else_changes(name: str) -> None:
    model = seeded(PRUNABLE[name])
    thinned, cuts = halved(model)
    plain = copy.deepcopy(thinned)
    dense_state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    refit(model, thinned, cuts, inputs(4))
    assert all(torch.equal(dense_state[k], t) for k, t in model.state_dict().items())
    consumers = {
        layer
        for layer, cut in cuts.items()
        if cut.kept_in is not None and isinstance(model.get_submodule(layer), nn.Conv2d | nn.Linear)
    }
    changed = {
        key.rpartition(".")[0]
        for key, tensor in plain.state_dict().items()
        if not torch.equal(tensor, thinned.state_dict()[key])
    }
    assert changed == consumers
    x = torch.cat(inputs(4))
    with torch.no_grad():
        expected = model(x)
        errors = [float((net(x) - expected).square().mean()) for net in (plain, thinned)]
    assert errors[1] < 0.7 * errors[0]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in thinned.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_layers_are_fitted_to_what_the_refitted_ones_before_them_give() -> None:
    model = seeded(FlattenVgg)
    thinned, cuts = halved(model)
    batches = inputs(8)
    refit(model, thinned, cuts, batches)
    again = copy.deepcopy(thinned)
    # `hidden` has one position per image, so its own fit can be repeated on its final inputs.
    x = torch.cat(batches)
    seen = outputs(thinned, "features", x).flatten(1)
    kept_in, kept_out = cuts["hidden"].kept_in, cuts["hidden"].kept_out
    assert kept_in is not None
    assert kept_out is not None
    with torch.no_grad():
        old = model.get_parameter("hidden.weight")[torch.from_numpy(kept_out)]
        again.get_parameter("hidden.weight").copy_(old[:, torch.from_numpy(kept_in)])
    targets = outputs(model, "hidden", x)[:, torch.from_numpy(kept_out)]
    fit_layer(again.get_submodule("hidden"), seen, targets)
    for name in ("weight", "bias"):
        one, two = (net.get_parameter(f"hidden.{name}") for net in (thinned, again))
        assert torch.allclose(one, two, atol=1e-4)


def test_it_repeats_bit_for_bit_and_keeps_modes() -> None:
    model = seeded(MobileNet)
    results = []
    for training in (False, True):
        thinned, cuts = halved(model)
        thinned.train(training)
        model.train(training)
        refit(model, thinned, cuts, inputs())
        assert all(m.training == training for m in (*thinned.modules(), *model.modules()))
        results.append(thinned.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_one_image_and_dead_inputs_do_no_harm() -> None:
    model = seeded(FlattenVgg)
    with torch.no_grad():
        model.get_parameter("hidden.weight").zero_()
        model.get_parameter("hidden.bias").fill_(-1.0)
    thinned, cuts = halved(model)
    before = thinned.get_parameter("classifier.weight").clone()
    refit(model, thinned, cuts, [inputs()[0][:1]])
    assert all(torch.isfinite(tensor).all() for tensor in thinned.state_dict().values())
    assert torch.equal(thinned.get_parameter("classifier.weight"), before)


def test_layers_that_are_used_twice_are_left_alone() -> None:
    model = seeded(SharedNet)
    groups = [c for c in trace(model, SHAPE) if c.name == "inner"]
    cuts = cuts_of(model, groups, {"inner": np.arange(7)})
    thinned = thin(model, cuts)
    before = {key: tensor.clone() for key, tensor in thinned.state_dict().items()}
    refit(model, thinned, {"again": Cut(kept_in=np.arange(8)), **cuts}, inputs())
    changed = {k for k, t in thinned.state_dict().items() if not torch.equal(before[k], t)}
    assert changed == {"outer.weight", "outer.bias"}


def test_without_inputs_it_is_refused_and_without_cuts_nothing_happens() -> None:
    model = seeded(FlattenVgg)
    thinned, cuts = halved(model)
    with pytest.raises(PlanInvalid, match="'least_squares' needs calibration inputs"):
        refit(model, thinned, cuts, ())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    refit(model, model, {}, inputs())
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
