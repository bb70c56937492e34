"""Channels that are zero go for nothing; nearly zero ones only as far as the damage allows."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.coupling import Coupling
from compression.errors import CompressionError
from compression.graph import trace
from compression.recover.admm import Admm, channel_sets
from compression.recover.masks import trained_weight
from compression.recover.projections import channel_squares, largest_channels
from compression.recover.purification import channels_above, purify, strengths
from tests.compression_tests.test_masks import fit, stripes_net

SHAPE = (1, 8, 8)


pytestmark = pytest.mark.usefixtures("one_thread")


def couplings_of(model: nn.Module) -> list[Coupling]:
    return [c for c in trace(model, SHAPE) if not c.is_output]


def net() -> nn.Module:
    model = stripes_net().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.copy_(torch.linspace(-0.2, 0.3, module.num_features))
    return model


def inputs() -> Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def silence(model: nn.Module, coupling: Coupling, channels: Sequence[int], factor: float) -> None:
    """Multiply the columns that read the channels."""
    with torch.no_grad():
        for tap in coupling.taps:
            if tap.side == "in":
                places = torch.from_numpy(tap.index[list(channels)].ravel())
                trained_weight(model, tap.layer)[:, places] *= factor


def ignore(model: nn.Module) -> None:
    """Leave statistics as they are: only what was removed makes a difference then."""
    del model


def test_channels_that_nobody_reads_go_without_a_change() -> None:
    model = net()
    first, second = couplings_of(model)[:2]
    silence(model, first, [1, 4, 6], 0.0)
    silence(model, second, [0], 0.0)
    expected = model(inputs())
    allowed = {c.name: list(range(1, c.channels + 1)) for c in couplings_of(model)}
    found = purify(
        model, couplings_of(model), allowed, recalibrate=ignore, score=lambda m: 50.0,
        thresholds=[1e-4],
    )  # fmt: skip
    assert found.kept[first.name] == (0, 2, 3, 5, 7)
    assert 0 not in found.kept[second.name]
    assert found.removed == 4
    torch.testing.assert_close(found.model(inputs()), expected, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in found.model.parameters()) < sum(
        p.numel() for p in model.parameters()
    )


def test_a_channel_that_is_made_of_zeros_counts_as_zero() -> None:
    model = net()
    first = couplings_of(model)[0]
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        trained_weight(model, first.name)[2] = 0.0
        model.get_parameter(f"{first.name}.bias")[2] = 0.0
        norm.weight[5] = 0.0
        norm.bias[[2, 5]] = 0.0
        norm.running_mean.zero_()  # type: ignore[union-attr]
    expected = model(inputs())
    strength = strengths(model, [first])[first.name]
    assert np.flatnonzero(strength == 0).tolist() == [2, 5]
    assert strength.max() == 1.0
    found = purify(
        model, [first], {first.name: range(1, 9)}, recalibrate=ignore, score=lambda m: 50.0,
        thresholds=[1e-4],
    )  # fmt: skip
    assert found.kept[first.name] == (0, 1, 3, 4, 6, 7)
    torch.testing.assert_close(found.model(inputs()), expected, rtol=0, atol=1e-5)


def test_a_strength_is_the_product_of_filter_scale_and_columns() -> None:
    model = net()
    first = couplings_of(model)[0]
    conv, norm, reader = model[0], model[1], model[3]  # type: ignore[index]
    filters = conv.weight.flatten(1).norm(dim=1)
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    columns = reader.weight.movedim(1, 0).flatten(1).norm(dim=1)
    product = (filters * scale * columns).detach().double()
    np.testing.assert_allclose(
        strengths(model, [first])[first.name], (product / product.max()).numpy(), rtol=1e-5
    )


def test_nearly_zero_channels_go_only_while_the_damage_allows() -> None:
    model = net()
    first = couplings_of(model)[0]
    silence(model, first, [3], 1e-5)
    silence(model, first, [1, 4], 1e-2)
    strength = strengths(model, [first])[first.name]
    assert strength[3] < 1e-4 < strength[[1, 4]].min() < strength[[1, 4]].max() < 5e-2

    def width(found: nn.Module) -> int:
        return trained_weight(found, first.name).shape[0]

    def damage(loss: float) -> int:
        return purify(
            model, [first], {first.name: range(1, 9)},
            recalibrate=ignore, score=lambda m: 50.0 - loss * (8 - width(m)),
        ).removed  # fmt: skip

    # A hundredth of a point each: all three; a twelfth: only one of them fits into 0.1.
    assert damage(0.01) == 3
    assert damage(0.09) == 1
    assert damage(0.2) == 0
    nothing = purify(
        model, [first], {first.name: range(1, 9)}, recalibrate=ignore,
        score=lambda m: float(width(m)),
    )  # fmt: skip
    assert nothing.model is model
    assert (nothing.kept, nothing.threshold, nothing.removed) == ({}, 0.0, 0)


def test_statistics_are_renewed_before_the_damage_is_counted() -> None:
    model = net()
    first = couplings_of(model)[0]
    silence(model, first, [3], 0.0)
    renewed: list[nn.Module] = []
    scored: list[bool] = []

    def score(candidate: nn.Module) -> float:
        scored.append(candidate is model or any(candidate is other for other in renewed))
        return 1.0

    purify(model, [first], {first.name: range(1, 9)}, recalibrate=renewed.append, score=score)
    assert len(scored) == 2
    assert all(scored)


def test_widths_are_rounded_up_to_what_a_site_may_keep() -> None:
    found = {"a": np.array([1.0, 0.001, 0.5, 0.002, 0.003, 0.9]), "b": np.array([1.0, 0.0])}
    assert {k: v.tolist() for k, v in channels_above(found, 0.01, {"a": [2, 4, 6]}).items()} == {
        "a": [0, 2, 4, 5]
    }
    assert channels_above(found, 0.01, {"a": [5, 6], "b": [2]})["a"].tolist() == [0, 2, 3, 4, 5]
    assert channels_above(found, 1e-4, {"a": [2, 4, 6]}) == {}
    assert channels_above(found, 0.01, {"b": [1, 2]})["b"].tolist() == [0]


def test_a_network_of_zeros_is_left_alone() -> None:
    model = net()
    first = couplings_of(model)[0]
    with torch.no_grad():
        trained_weight(model, first.name).zero_()
    assert strengths(model, [first])[first.name].tolist() == [1.0] * 8
    with pytest.raises(CompressionError, match=r"most_damage is -1"):
        purify(model, [first], {}, recalibrate=ignore, score=lambda m: 0.0, most_damage=-1.0)


def test_a_channel_is_projected_with_all_its_layers() -> None:
    model = net()
    first = couplings_of(model)[0]
    weights = {name: trained_weight(model, name).detach() for name in ("0", "3")}
    rows = weights["0"].flatten(1).square().sum(1)
    columns = weights["3"].movedim(1, 0).flatten(1).square().sum(1)
    torch.testing.assert_close(channel_squares(weights, first), (rows + columns).double())
    projected = largest_channels(first, 5)(weights)
    gone = (rows + columns).argsort()[:3].tolist()
    for channel in range(8):
        is_gone = channel in gone
        assert bool((projected["0"][channel] == 0).all()) is is_gone
        assert bool((projected["3"][:, channel] == 0).all()) is is_gone
    again = largest_channels(first, 5)(projected)
    assert all(torch.equal(again[k], projected[k]) for k in projected)
    # No other choice of five channels is nearer.
    moved = sum(float((weights[k] - projected[k]).square().sum()) for k in weights)
    assert moved == pytest.approx(float((rows + columns).sort().values[:3].sum()), rel=1e-5)


def test_admm_ends_with_channels_that_prune_for_nothing() -> None:
    model = stripes_net()
    couplings = couplings_of(copy.deepcopy(model).eval())
    keep = {c.name: c.channels // 2 for c in couplings}
    hook = Admm({}, joint=channel_sets(model, couplings, keep), every=5, stages=(0.01, 0.1, 1.0))
    fit(model, [hook], steps=60)
    assert hook.gap > 0
    for coupling in couplings:
        layers = {tap.layer for tap in coupling.taps} & set(dict(model.named_parameters()) and {
            name.removesuffix(".weight") for name, p in model.named_parameters() if p.dim() > 1
        })  # fmt: skip
        weights = {layer: trained_weight(model, layer).detach() for layer in layers}
        alive = channel_squares(weights, coupling) > 0
        assert int(alive.sum()) == keep[coupling.name]
    expected = model.eval()(inputs())
    found = purify(
        model, couplings, {c.name: range(1, c.channels + 1) for c in couplings},
        recalibrate=ignore, score=lambda m: 1.0, thresholds=[1e-6],
    )  # fmt: skip
    assert {name: len(kept) for name, kept in found.kept.items()} == keep
    torch.testing.assert_close(found.model(inputs()), expected, rtol=0, atol=1e-5)


def test_joint_sets_go_on_where_they_were_interrupted() -> None:
    model = net()
    couplings = couplings_of(model)
    sets = channel_sets(model, couplings, {c.name: 3 for c in couplings})
    hook = Admm({}, joint=sets, every=1, stages=(0.5, 1.0))
    hook.start(model, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    hook.after_step(model, 0)
    fresh = Admm({}, joint=sets, every=1, stages=(0.5, 1.0))
    fresh.start(model, 4)
    fresh.load_state(hook.state())
    one, other = hook.penalty(model, 3), fresh.penalty(model, 3)
    assert one is not None
    assert other is not None
    assert float(one.detach()) == float(other.detach()) > 0
