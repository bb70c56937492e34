"""Supernets hand out the weights that training saw, and go on where they were interrupted."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from compression.apply import ApplyContext, apply
from compression.backend import FLOAT32
from compression.certificate import certify
from compression.decisions import PruneChannels
from compression.equivalence import equivalence_gap
from compression.errors import CompressionError, PlanInvalid
from compression.methods import Methods
from compression.models.digits_cnn import digits_cnn
from compression.plan import Plan
from compression.supernets.handing_out import context_for
from compression.supernets.pruning_net import HIDDEN, PruningNet, WeightGenerator, encodings
from compression.supernets.supernet import Batch, soft_cross_entropy
from compression.supernets.supernet_training import (
    smoothed,
)
from compression.supernets.widths import WidthChoices, kept_channels
from compression.surgery import cuts_of, thin
from compression.survey import survey
from tests.builders import PRUNABLE, SHAPE, seeded, surveyed_resnet
from tests.compression_tests.small_supernets import (
    DIGITS,
    FINE,
    KINDS,
    context_of,
    plan_at,
    supernet_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRUNABLE)
def test_cropped_weights_are_masked_full_size_weights(kind: str, name: str) -> None:
    context = context_of(PRUNABLE[name])
    supernet = supernet_of(kind, context, disturb=True)
    widths = supernet.choices.draw(torch.Generator().manual_seed(4))
    full = supernet.full_size(widths)
    kept = kept_channels(supernet.couplings, supernet.order, widths)
    cuts = cuts_of(full, supernet.couplings.values(), kept)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    cropped = thin(full, cuts)
    assert equivalence_gap(full, cropped, cuts, x) <= 1e-5
    with torch.no_grad():
        torch.testing.assert_close(supernet.outputs(widths, x, FLOAT32), cropped(x))
        # In training, too: each network normalises by its own batch, and leaves no trace.
        statistics = copy.deepcopy(dict(supernet.named_buffers()))
        trained = supernet.train().outputs(widths, x, FLOAT32)
        torch.manual_seed(0)
        supernet.eval()
    assert all(torch.equal(statistics[k], v) for k, v in supernet.named_buffers())
    assert trained.shape == (3, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_apply_hands_out_the_same_network_whichever_selector_a_plan_names(kind: str) -> None:
    context = context_of(PRUNABLE["mobilenet"])
    supernet = supernet_of(kind, context, disturb=True)
    widths = supernet.choices.draw(torch.Generator().manual_seed(2))
    plan = plan_at(widths, supernet.choices)
    there = context_for(plan, supernet, context)
    applied = apply(plan, there)
    certify(there.model, applied, plan, SHAPE, thorough=False)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(applied.model(x), supernet.outputs(widths, x, FLOAT32))
    kept = applied.stages[0].record.to_json()["kept"]
    first = next(iter(plan.prune_channels()))
    assert kept[first] == sorted(supernet.order[first][: widths[first]].tolist())


def test_a_plan_may_ask_for_widths_between_those_trained_at() -> None:
    context = context_of(PRUNABLE["flatten"])
    sites = {site.name: site.channels for site in context.survey.prunable()}
    name, channels = next(iter(sites.items()))
    choices = WidthChoices.of(context.survey, FINE, {name: [channels // 2]})
    assert choices.counts[name] == (channels // 2, channels)
    assert {len(c) for s, c in choices.counts.items() if s != name} == {1}
    plan = Plan.of({name: [PruneChannels(keep_channels=channels // 2 + 1)]})
    assert choices.of_plan(plan)[name] == channels // 2 + 1
    with pytest.raises(PlanInvalid, match="nowhere"):
        choices.of_plan(Plan.of({"nowhere": [PruneChannels(keep_channels=1)]}))
    with pytest.raises(PlanInvalid, match=str(channels)):
        choices.of_plan(Plan.of({name: [PruneChannels(keep_channels=channels + 1)]}))


@pytest.mark.parametrize("given", [{"nowhere": [1]}, {0: 3}, {0: [0]}, {0: [10_000]}, {0: [1.5]}])
def test_refuses_widths_that_a_site_does_not_have(given: dict[object, object]) -> None:
    found = survey(seeded(PRUNABLE["flatten"]), SHAPE)
    first = found.prunable()[0].name
    named = {first if site == 0 else str(site): counts for site, counts in given.items()}
    with pytest.raises(CompressionError, match=next(iter(named))):
        WidthChoices.of(found, FINE, named)


def test_what_a_job_freezes_stays_whole() -> None:
    _, found = surveyed_resnet(20)
    choices = WidthChoices.of(found, Methods(freeze=("layer1.0.conv1",), channel_multiple=4))
    assert choices.counts["layer1.0.conv1"] == (16,)
    assert choices.counts["layer1.1.conv1"] == (4, 8, 12, 16)


def test_widths_are_drawn_uniformly() -> None:
    choices = WidthChoices(counts={"a": (2, 4, 8), "b": (5,)})
    generator = torch.Generator().manual_seed(0)
    drawn = [choices.draw(generator) for _ in range(1500)]
    counts = np.unique([d["a"] for d in drawn], return_counts=True)
    assert counts[0].tolist() == [2, 4, 8]
    np.testing.assert_allclose(counts[1] / 1500, 1 / 3, atol=0.05)
    assert {d["b"] for d in drawn} == {5}
    assert choices.narrowest() == {"a": 2, "b": 5}
    assert choices.widest() == {"a": 8, "b": 5}


def test_encodings_of_a_residual_network() -> None:
    model = seeded(digits_cnn)
    context = ApplyContext.build(model, survey(model, DIGITS), DIGITS)
    got = encodings(model, context.module.rankings.couplings)
    second = got["blocks.2.conv2"][0]
    # A stem by its own outputs; a block by its middle, its outputs and its inputs.
    assert got["conv1"] == ("conv1",)
    assert got["blocks.0.conv1"] == ("blocks.0.conv1", "conv1")
    assert got["blocks.0.conv2"] == ("conv1", "blocks.0.conv1")
    assert second not in ("conv1", "blocks.2.conv1")
    assert got["blocks.2.conv1"] == ("blocks.2.conv1", "conv1", second)
    assert got["blocks.2.conv2"] == (second, "blocks.2.conv1", "conv1")
    assert got["blocks.2.shortcut.0"] == (second, "conv1", "blocks.2.conv1")
    assert len(got) == 10


def test_layers_that_no_width_touches_are_not_generated() -> None:
    model, found = surveyed_resnet(20)
    context = ApplyContext.build(model, found, (3, 32, 32))
    got = encodings(model, context.module.rankings.couplings)
    # The channels of its residual stream are padded with zeros and stay whole.
    assert "conv1" not in got
    assert got["layer1.0.conv1"] == got["layer1.0.conv2"] == ("layer1.0.conv1",)
    assert len(got) == 18


def test_encodings_stay_within_a_block_but_not_within_a_mere_sequence() -> None:
    flat = context_of(PRUNABLE["flatten"])
    got = encodings(flat.model, flat.module.rankings.couplings)
    assert got["features.0"] == ("features.0",)
    assert got["features.4"] == ("features.4", "features.0")
    mobile = context_of(PRUNABLE["mobilenet"])
    got = encodings(mobile.model, mobile.module.rankings.couplings)
    # The squeeze of a block is encoded for its depthwise convolution, too.
    assert got["blocks.0.depthwise"][0] == "blocks.0.expand"
    assert "blocks.0.squeeze" in got["blocks.0.depthwise"]
    assert not any(site.startswith("blocks.1") for site in got["blocks.0.depthwise"])


def test_generated_weights_are_two_layers_on_the_kept_shares() -> None:
    context = context_of(PRUNABLE["flatten"])
    supernet = supernet_of("generated", context, disturb=True)
    assert isinstance(supernet, PruningNet)
    widths = supernet.choices.widest() | {"features.0": 3, "features.4": 5}
    position = list(supernet.encodings).index("features.4")
    generate = supernet.generators[position]
    assert isinstance(generate, WeightGenerator)
    encoding = torch.tensor([5 / 20, 3 / 12])
    hidden = torch.relu(generate.fc1.weight @ encoding + generate.fc1.bias)
    flat = generate.fc2.weight @ hidden + generate.fc2.bias
    assert hidden.shape == (HIDDEN,)
    torch.testing.assert_close(
        supernet.weights(widths)["features.4.weight"], flat.view(20, 12, 3, 3)
    )
    residual = supernet_of("residual", context)
    dense = context.model.get_parameter("features.4.weight")
    assert torch.equal(residual.weights(widths)["features.4.weight"], dense)


def test_weights_from_nothing_begin_as_he_says() -> None:
    supernet = supernet_of("generated", context_of(PRUNABLE["resnet20"]))
    weights = supernet.weights(supernet.choices.widest())
    for name in ("layer1.0.conv1", "layer3.2.conv2"):
        weight = weights[f"{name}.weight"].detach()
        deviation = (2.0 / weight[0].numel()) ** 0.5
        assert float(weight.std()) == pytest.approx(deviation, rel=1e-3)


def test_a_pruning_net_trains_neither_dense_weights_nor_what_is_cropped_away() -> None:
    context = context_of(PRUNABLE["flatten"])
    supernet = supernet_of("residual", context)
    widths = supernet.choices.widest() | {"features.0": 4}
    total = supernet.outputs(widths, torch.randn(2, *SHAPE), FLOAT32).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert supernet.model.get_parameter("features.0.weight").grad is None
    assert isinstance(supernet, PruningNet)
    first = supernet.generators[0]
    assert isinstance(first, WeightGenerator)
    gradient = first.fc2.bias.grad
    assert gradient is not None
    kept = supernet.order["features.0"][:4]
    moved = gradient.view(12, -1).abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == sorted(kept.tolist())


def test_a_sandwich_is_the_mean_of_its_networks_losses() -> None:
    context = context_of(PRUNABLE["flatten"])
    supernet = supernet_of("shared", context, networks=3).train()
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, *SHAPE), smoothed(torch.tensor([0, 3, 3, 9]), 10, 0.1))
    torch.manual_seed(1)
    value = supernet.accumulate(batch, torch.Generator().manual_seed(7), FLOAT32)
    found = {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    choices = supernet.choices
    drawn = choices.draw(torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    wide = supernet.outputs(choices.widest(), batch.inputs, FLOAT32)
    first = -(batch.targets * wide.log_softmax(1)).sum() / 4
    losses = [first]
    for widths in (choices.narrowest(), drawn):
        out = supernet.outputs(widths, batch.inputs, FLOAT32)
        losses.append(soft_cross_entropy(out, wide.detach().softmax(1)))
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    assert value == pytest.approx(float(first.detach()), rel=1e-6)
    for name, parameter in supernet.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], rtol=1e-4, atol=1e-6)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    targets = smoothed(torch.tensor([2]), 4, 0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025]]))
