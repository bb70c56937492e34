"""Weights share values, keep sharing them while they are trained, and the record can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compression.apply import ApplyContext, apply
from compression.cost import CostTable
from compression.decisions import Decision, Factorize, Share, Sparsify
from compression.errors import CompressionError, NotCertified, PlanInvalid
from compression.methods import Methods
from compression.models.cifar_resnet import cifar_resnet
from compression.plan import Plan
from compression.primitives.product_codebooks import blocks_by_position, second_moments
from compression.primitives.share import (
    SharedLayer,
    Sharing,
    WeightSharing,
    refuse_sparse_vectors,
)
from compression.primitives.sparsify import Sparsity
from compression.primitives.weight_layers import MAX_SNR_DB, half, snr_db, weight_layer
from compression.recover.codebook_hold import HoldCodebooks, SharedWeight
from compression.recover.masks import KeepMasks
from compression.site import Site
from tests import cifar
from tests.compression_tests.shared_weights import (
    RECIPE,
    SHAPE,
    calibration,
    context_of,
    fine_tune,
    loss_of,
    small_net,
    small_survey,
    trained_net,
)
from tests.contracts.primitive import PrimitiveContract


def site_of(kind: Any, name: str = "3", params: int = 5000) -> Site:
    return Site(name=name, kind=kind, channels=0, macs=0, params=params)


def distinct(model: nn.Module, name: str, block: int) -> int:
    return len(torch.unique(weight_layer(model, name).weight.detach().reshape(-1, block), dim=0))


class TestSharing(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> WeightSharing:
        return WeightSharing()

    @pytest.fixture
    def site(self) -> Site:
        return site_of("model", "model")

    @pytest.fixture
    def other_site(self) -> Site:
        return site_of("channels")

    @pytest.fixture
    def costs(self) -> CostTable:
        return small_survey().costs

    @pytest.fixture(params=["scalars", "vectors", "vectors for inputs"])
    def subject_and_context(
        self, request: pytest.FixtureRequest
    ) -> tuple[nn.Module, Any, Mapping[str, Decision]]:
        model = small_net()
        images = calibration() if request.param == "vectors for inputs" else ()
        block = 1 if request.param == "scalars" else 8
        return model, context_of(model, images), {"model": Share(entries=16, block=block)}

    def content(self, subject: Any) -> object:
        assert isinstance(subject, nn.Module)
        return {name: tensor.tolist() for name, tensor in subject.state_dict().items()}

    def test_small_layers_do_not_apply(self, costs: CostTable) -> None:
        reason = WeightSharing().applicable(site_of("layer", params=99), costs)
        assert reason == "layer '3' has 99 weights; 256 make it worth while"

    def test_options_are_ascending_in_bits(self, site: Site) -> None:
        options = WeightSharing().space(site, Methods(share=("64", "16", "256 9")))
        assert options == (
            Share(entries=256, block=9),
            Share(entries=16),
            Share(entries=64),
            None,
        )


def test_the_model_site_covers_what_is_large_and_spares_the_ends() -> None:
    model = small_net()
    decisions = {"model": Share(entries=16, block=4), "4": Share(entries=4)}
    after, record = WeightSharing().apply(model, decisions, context_of(model))
    assert list(record.layers) == ["0", "3", "4", "7", "10", "12"]
    blocks = {name: layer.shared.block for name, layer in record.layers.items()}
    assert blocks == {"0": 1, "3": 3, "4": 1, "7": 4, "10": 4, "12": 1}
    entries = {name: layer.entries for name, layer in record.layers.items()}
    assert entries == {"0": 72, "3": 16, "4": 4, "7": 16, "10": 16, "12": 80}
    for name, layer in record.layers.items():
        assert distinct(after, name, layer.shared.block) <= layer.entries
        values = weight_layer(after, name).weight.detach()
        assert torch.equal(half(values), values)
    assert record.to_json()["layers"]["4"]["entries"] == 4


def test_weighting_by_inputs_lowers_the_error_of_outputs() -> None:
    """On inputs that the codebook was fitted to, in the metric that it minimises."""
    model = small_net()
    images = calibration()
    for layer in (weight_layer(model, "10"),):
        scale = torch.logspace(-2, 1, layer.weight[0].numel())
        with torch.no_grad():
            layer.weight.mul_(1 / scale)
    choice = {"10": Share(entries=16, block=4)}
    inputs = torch.cat(images)
    arrived: list[torch.Tensor] = []
    hook = weight_layer(model, "10").register_forward_pre_hook(
        lambda module, arguments: arrived.append(arguments[0])
    )
    with torch.no_grad():
        model(inputs)
    hook.remove()
    moments = second_moments(weight_layer(model, "10"), arrived[0], 4)
    assert moments is not None
    errors = []
    for data in ((), images):
        after, record = WeightSharing().apply(model, choice, context_of(model, data))
        assert record.layers["10"].weighted == bool(data)
        gap = blocks_by_position(weight_layer(after, "10"), 4)
        gap = gap - blocks_by_position(weight_layer(model, "10"), 4)
        errors.append(float(torch.einsum("mri,mij,mrj->", gap, moments, gap)))
    assert errors[1] < 0.8 * errors[0]


def test_a_pass_over_calibration_leaves_statistics_and_modes() -> None:
    model = small_net().train()
    choice = {"model": Share(entries=16, block=4)}
    after, _ = WeightSharing().apply(model, choice, context_of(model, calibration()))
    assert all(module.training for module in after.modules())
    assert torch.equal(after.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))
    assert not any(module._forward_pre_hooks for module in after.modules())


def test_zeros_stay_where_scalars_are_shared_and_are_values_where_vectors_are() -> None:
    model = small_net()
    weight = weight_layer(model, "10").weight
    with torch.no_grad():
        weight.masked_fill_(weight.abs() < weight.abs().median(), 0.0)
    after, record = WeightSharing().apply(model, {"10": Share(entries=8)}, context_of(model))
    assert torch.equal(weight_layer(after, "10").weight == 0, weight == 0)
    assert distinct(after, "10", 1) == 8
    WeightSharing().verify(model, after, record)
    choice = {"10": Share(entries=8, block=4)}
    after, record = WeightSharing().apply(model, choice, context_of(model))
    assert distinct(after, "10", 4) <= 8
    WeightSharing().verify(model, after, record)


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        ({"10": [Sparsify(), Share(entries=8, block=4)]}, "Site '10' .* '10' is sparse"),
        ({"model": [Sparsify(), Share(entries=8, block=4)]}, "Site 'model' .* 'model' is"),
        ({"model": [Sparsify()], "7": [Share(entries=8, block=9)]}, "Site '7' .* 'model' is"),
        ({"10": [Sparsify()], "model": [Share(entries=8, block=9)]}, "Site 'model' .* '10' is"),
        ({"model": [Sparsify(), Share(entries=8)]}, None),
        ({"10": [Sparsify()], "7": [Share(entries=8, block=9)]}, None),
        (
            {"10": [Sparsify(), Share(entries=8)], "model": [Share(entries=8, block=9)]},
            None,
        ),
    ],
)
def test_sparse_layers_share_no_vectors(
    sites: Mapping[str, list[Decision]], reason: str | None
) -> None:
    plan = Plan.of(sites)
    if reason is None:
        refuse_sparse_vectors(plan)
    else:
        with pytest.raises(PlanInvalid, match=reason):
            refuse_sparse_vectors(plan)


def test_masks_and_codebooks_hold_together_on_a_model_trained_between() -> None:
    model = small_net()
    plan = Plan.of({"model": [Sparsify(sparsity=0.5), Share(entries=16)]})
    context = ApplyContext.build(model, small_survey(), SHAPE)
    brief = dataclasses.replace(RECIPE, steps=6)
    sparse = apply(plan.before_codes(), context)
    fine_tune(sparse.model, sparse.invariants(), brief)
    made = apply(plan, context, after=sparse)
    masks, sharing = (stage.record for stage in made.stages)
    assert isinstance(masks, Sparsity)
    assert isinstance(sharing, Sharing)
    before = weight_layer(made.model, "10").weight.detach().clone()
    assert [type(hook) for hook in made.invariants()] == [KeepMasks, HoldCodebooks]
    fine_tune(made.model, made.invariants(), brief)
    assert not torch.equal(before, weight_layer(made.model, "10").weight)
    for name, mask in masks.masks.items():
        weight = weight_layer(made.model, name).weight.detach()
        assert torch.equal(weight[~mask], torch.zeros(int((~mask).sum())))
        assert sharing.layers[name].shared.zero
    for name, layer in sharing.layers.items():
        assert distinct(made.model, name, 1) <= layer.entries
        assert torch.equal(
            half(weight_layer(made.model, name).weight), made.model.get_parameter(f"{name}.weight")
        )


def test_factors_are_layers_and_a_decision_of_their_layer_is_theirs() -> None:
    model = small_net()
    factors = {"10": [Factorize(method="svd", rank_ratio=0.6)]}
    context = ApplyContext.build(model, small_survey(), SHAPE)
    everywhere = apply(Plan.of({**factors, "model": [Share(entries=16)]}), context)
    record = everywhere.stages[-1].record
    assert isinstance(record, Sharing)
    assert {"10.0", "10.1"} <= set(record.layers)
    fine_tune(everywhere.model, everywhere.invariants(), dataclasses.replace(RECIPE, steps=3))
    assert distinct(everywhere.model, "10.0", 1) <= 16
    there = apply(Plan.of({"10": [*factors["10"], Share(entries=8, block=4)]}), context)
    record = there.stages[-1].record
    assert isinstance(record, Sharing)
    assert list(record.layers) == ["10.0", "10.1"]
    assert distinct(there.model, "10.1", record.layers["10.1"].shared.block) <= 8
    parts = Plan.of({"10": [Factorize(method="kronecker", rank_ratio=0.5), Share(entries=8)]})
    record = apply(parts, context).stages[-1].record
    assert isinstance(record, Sharing)
    assert len(record.layers) >= 2


def test_filters_of_zeros_are_an_entry_of_vectors() -> None:
    model = small_net()
    with torch.no_grad():
        weight_layer(model, "7").weight[3:9] = 0
    choice = {"7": Share(entries=16, block=9)}
    after, record = WeightSharing().apply(model, choice, context_of(model))
    assert record.layers["7"].shared.zero
    assert float(weight_layer(after, "7").weight.detach()[3:9].abs().max()) == 0.0
    fine_tune(after, record.invariants(), dataclasses.replace(RECIPE, steps=10))
    assert float(weight_layer(after, "7").weight.detach()[3:9].abs().max()) == 0.0
    assert distinct(after, "7", 9) <= 16


def test_parts_of_a_factorized_layer_are_its_layer() -> None:
    model = small_net()
    model.add_module("10", nn.Sequential(nn.Linear(384, 16, bias=False), nn.Linear(16, 32)))
    _, record = WeightSharing().apply(model, {"10": Share(entries=8)}, context_of(model))
    assert list(record.layers) == ["10.0", "10.1"]


def test_a_tied_weight_is_decided_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    after, record = WeightSharing().apply(model, {"model": Share(entries=8)}, context_of(model))
    assert list(record.layers) == ["1"]
    assert weight_layer(after, "1").weight is weight_layer(after, "3").weight
    WeightSharing().verify(model, after, record)


def test_two_decisions_about_one_weight_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    choice = {"1": Share(entries=8), "3": Share(entries=4)}
    with pytest.raises(PlanInvalid, match="Layers '1' and '3' have one weight and two decisions"):
        WeightSharing().apply(model, choice, context_of(model))


def test_channels_last_weights_are_shared_in_the_same_way() -> None:
    plain, last = small_net(), small_net().to(memory_format=torch.channels_last)
    choice = {"7": Share(entries=8, block=9)}
    one, _ = WeightSharing().apply(plain, choice, context_of(plain))
    two, record = WeightSharing().apply(last, choice, context_of(last))
    assert torch.equal(weight_layer(one, "7").weight, weight_layer(two, "7").weight)
    fine_tune(two, record.invariants(), dataclasses.replace(RECIPE, steps=5))
    assert distinct(two, "7", 9) <= 8


@pytest.mark.parametrize("site", ["1", "", "9", "10.3"])
def test_only_layers_with_weights_are_sites(site: str) -> None:
    model = small_net()
    with pytest.raises(PlanInvalid, match=f"Site '{site}' is no convolution"):
        WeightSharing().apply(model, {site: Share(entries=8)}, context_of(model))


def test_weights_beyond_float16_are_refused() -> None:
    model = small_net()
    with torch.no_grad():
        weight_layer(model, "10").weight[0, 0] = 1e6
    with pytest.raises(PlanInvalid, match=r"Layer '10' has a weight of magnitude 1e\+06; 65504"):
        WeightSharing().apply(model, {"10": Share(entries=8)}, context_of(model))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("values", r"Layer '10': weights take \d+ distinct blocks of 1; 8 are allowed"),
        ("noise", r"Layer '10': signal to noise"),
        ("other", r"share: tensor '12.weight' changed; no decision covers it"),
        ("half", r"Layer '10': a shared weight is no float16"),
    ],
)
def test_verification_finds(damage: str, message: str) -> None:
    model = small_net()
    after, record = WeightSharing().apply(model, {"10": Share(entries=8)}, context_of(model))
    weight = weight_layer(after, "10").weight
    with torch.no_grad():
        if damage == "values":
            weight[0, :4] = torch.tensor([5.0, 6.0, 7.0, 8.0])
        elif damage == "noise":
            weight.mul_(2.0)
        elif damage == "half":
            weight.mul_(1 + 2e-6)
        else:
            weight_layer(after, "12").weight[0] += 1
    with pytest.raises(NotCertified, match=message):
        WeightSharing().verify(model, after, record)


def test_replay_keeps_the_structure_and_takes_the_checkpoint() -> None:
    model = small_net()
    context = context_of(model)
    after, record = WeightSharing().apply(model, {"model": Share(entries=16)}, context)
    replayed = WeightSharing().replay(model, record.to_json(), context)
    replayed.load_state_dict(after.state_dict(), strict=True)
    assert torch.equal(weight_layer(replayed, "10").weight, weight_layer(after, "10").weight)


@pytest.mark.parametrize(("entries", "block"), [(3, 1), (16, 4)])
def test_training_moves_entries_and_keeps_sharing(entries: int, block: int) -> None:
    model = trained_net()
    choice = {"model": Share(entries=entries, block=block)}
    after, record = WeightSharing().apply(model, choice, context_of(model))
    before = weight_layer(after, "10").weight.detach().clone()
    damaged = loss_of(after)
    assert damaged > 1.5 * loss_of(model)
    fine_tune(after, record.invariants())
    assert loss_of(after) < 0.5 * damaged
    for name, layer in record.layers.items():
        weight = weight_layer(after, name).weight.detach()
        blocks = weight.reshape(-1, layer.shared.block)
        first = torch.zeros(int(layer.shared.assignments.max()) + 1, layer.shared.block)
        first[layer.shared.assignments] = blocks
        assert torch.equal(first[layer.shared.assignments], blocks)
        assert torch.equal(half(weight), weight)
    assert not torch.equal(before, weight_layer(after, "10").weight)


def test_sums_of_gradients_learn_too() -> None:
    model = trained_net()
    after, record = WeightSharing().apply(model, {"10": Share(entries=2)}, context_of(model))
    shared = {name: layer.shared for name, layer in record.layers.items()}
    damaged = loss_of(after)
    fine_tune(after, [HoldCodebooks(shared, gradient="sum")])
    assert loss_of(after) < damaged
    assert distinct(after, "10", 1) <= 2


def test_a_codebook_of_another_layer_is_refused() -> None:
    hook = HoldCodebooks({"10": SharedWeight(block=1, assignments=torch.zeros(7, dtype=int))})  # type: ignore[call-overload]
    with pytest.raises(CompressionError, match=r"Layer '10' has 12288 weights; .* made for 7"):
        hook.start(small_net(), 1)


def test_signal_to_noise() -> None:
    assert snr_db(torch.ones(4), torch.ones(4)) == MAX_SNR_DB
    assert snr_db(torch.ones(100), torch.full((100,), 0.9)) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_with_32_values(real_data: Path) -> None:
    model = cifar_resnet(20)
    model.load_state_dict(cifar.state_dict(real_data, "cifar_resnet20"))
    context = context_of(small_net())
    layers = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    context = dataclasses.replace(context, dense=model.eval(), input_shape=(3, 32, 32))
    after, record = WeightSharing().apply(model, {"model": Share(entries=32)}, context)
    assert set(record.layers) == {*layers, "linear"}
    middle: list[SharedLayer] = [record.layers[name] for name in sorted(layers)][1:]
    assert min(layer.snr_db for layer in middle) > 22
    images = torch.from_numpy(cifar.images(real_data, "test")[:128].transpose(0, 3, 1, 2).copy())
    mean, std = torch.tensor(cifar.MEAN), torch.tensor(cifar.STD)
    x = (images / 255.0 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        agree = (model(x).argmax(1) == after(x).argmax(1)).float().mean()
    assert float(agree) > 0.95
