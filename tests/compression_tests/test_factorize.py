from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.cost import CostTable
from compression.counting import count_macs, count_params
from compression.decisions import Decision, Factorize, FactorizeMethod
from compression.errors import NotCertified, PlanInvalid
from compression.plan import Plan
from compression.primitives.context import ModuleContext
from compression.primitives.decompositions import (
    compose,
    decompose,
    output_error,
)
from compression.primitives.factorize import LowRank
from compression.primitives.input_moments import input_moments, patches
from compression.primitives.rankings import Rankings
from compression.primitives.split_layers import chain, fill
from compression.site import MODEL_SITE, Site
from compression.survey import survey
from tests.builders import SHAPE, FixedWidthNet, MobileNet, OddConvs, SharedNet, seeded
from tests.contracts.primitive import PrimitiveContract

METHODS: tuple[FactorizeMethod, ...] = get_args(FactorizeMethod)
LARGE_WINDOW: tuple[FactorizeMethod, ...] = ("channel", "spatial", "tucker2", "cp", "kronecker")


def context_of(model: nn.Module, images: int = 0) -> ModuleContext:
    generator = torch.Generator().manual_seed(5)
    batches = [torch.randn(4, *SHAPE, generator=generator) for _ in range(images // 4)]
    return ModuleContext(
        dense=model,
        survey=survey(model, SHAPE),
        rankings=Rankings({}, {}),
        input_shape=SHAPE,
        calibration=batches,
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(OddConvs)


@pytest.fixture(scope="module")
def context(model: nn.Module) -> ModuleContext:
    return context_of(model, images=16)


def weight(n_out: int, n_in: int, kh: int, kw: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_out, n_in, kh, kw, generator=generator)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class TestLowRank(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> LowRank:
        return LowRank()

    @pytest.fixture
    def site(self, context: ModuleContext) -> Site:
        return layer_site(context, "odd")

    @pytest.fixture
    def other_site(self, context: ModuleContext) -> Site:
        return layer_site(context, "depthwise")

    @pytest.fixture
    def costs(self, context: ModuleContext) -> CostTable:
        return context.survey.costs

    @pytest.fixture
    def subject_and_context(
        self, model: nn.Module, context: ModuleContext
    ) -> tuple[nn.Module, Any, Mapping[str, Decision]]:
        decisions: dict[str, Decision] = {
            "odd": Factorize(method="spatial", rank_ratio=0.5, whiten=True),
            "same": Factorize(method="cp", rank_ratio=0.5),
        }
        return model, context, decisions

    def content(self, subject: Any) -> object:
        assert isinstance(subject, nn.Module)
        return {name: tensor.tolist() for name, tensor in subject.state_dict().items()}


def layer_site(context: ModuleContext, name: str) -> Site:
    return next(s for s in context.survey.sites if s.name == name and s.kind == "layer")


@pytest.mark.parametrize(
    ("layer", "method"),
    [
        *(
            (layer, method)
            for method in LARGE_WINDOW
            for layer in (
                nn.Conv2d(8, 9, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
                nn.Conv2d(8, 9, 3, padding=1, padding_mode="reflect"),
                nn.Conv2d(8, 9, 3, padding="same", dilation=(2, 1)),
                nn.Conv2d(8, 9, 3, stride=2, padding=2, padding_mode="circular"),
            )
        ),
        (nn.Conv2d(8, 6, 1, stride=2, padding=1), "svd"),
        (nn.Conv2d(8, 6, 1), "spatial"),
        (nn.Linear(8, 12), "svd"),
        (nn.Linear(8, 12, bias=False), "channel"),
        (nn.Linear(8, 12), "kronecker"),
    ],
)
def test_a_chain_computes_the_layer_with_the_composed_weight(
    layer: nn.Conv2d | nn.Linear, method: FactorizeMethod
) -> None:
    shape = layer.weight.shape if layer.weight.dim() == 4 else (*layer.weight.shape, 1, 1)
    ranks = (3, 4) if method == "tucker2" else (3,)
    factors = decompose(method, layer.weight.reshape(shape), ranks, generator=generator())
    made = chain(layer, method, ranks)
    fill(made, factors)
    reference = copy.deepcopy(layer)
    with torch.no_grad():
        composed = compose(method, factors, shape)
        reference.weight.copy_(composed.reshape(layer.weight.shape))
        inputs = torch.randn(2, 8, 9, 7) if isinstance(layer, nn.Conv2d) else torch.randn(2, 8)
        torch.testing.assert_close(made(inputs), reference(inputs), rtol=1e-4, atol=1e-5)
    assert all(type(part).__module__.startswith("torch.nn") for part in made)


def test_a_chain_takes_over_dtype_mode_and_what_is_trained_and_draws_no_random_numbers() -> None:
    layer = nn.Conv2d(8, 8, 3).double().eval()
    layer.weight.requires_grad_(False)
    state = torch.get_rng_state()
    made = chain(layer, "tucker2", (2, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not made.training
    assert {p.dtype for p in made.parameters()} == {torch.float64}
    assert {n: p.requires_grad for n, p in made.named_parameters()} == {
        "0.weight": False,
        "1.weight": False,
        "2.weight": False,
        "2.bias": True,
    }


# Whitening ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odd", "same", "point", "hidden"])
def test_patches_times_the_weight_are_the_outputs(model: nn.Module, name: str) -> None:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    inputs = torch.randn(2, 64)
    if isinstance(layer, nn.Conv2d):
        inputs = torch.randn(2, layer.in_channels, 9, 7)
    rows = patches(layer, inputs, 10_000, generator())
    outputs = layer(inputs)
    expected = outputs.movedim(1, -1).reshape(-1, outputs.shape[1])
    found = rows @ layer.weight.flatten(1).t()
    if layer.bias is not None:
        found = found + layer.bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(patches(layer, inputs, 1, generator())) == 1


@pytest.mark.parametrize(
    ("name", "method"),
    [("odd", "channel"), ("odd", "spatial"), ("same", "spatial"), ("hidden", "svd")],
)
@pytest.mark.parametrize("ratio", [0.25, 0.6])
def test_whitening_errs_less_on_calibration_outputs_and_more_on_the_weight(
    model: nn.Module, context: ModuleContext, name: str, method: FactorizeMethod, ratio: float
) -> None:
    inputs: list[Tensor] = []
    subject = copy.deepcopy(model)
    layer = subject.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in context.calibration:
            subject(batch)
    hook.remove()
    errors, weights = [], []
    for whiten in (False, True):
        decision = Factorize(method=method, rank_ratio=ratio, whiten=whiten)
        made, record = LowRank().apply(model, {name: decision}, context)
        weights.append(record.layers[name].error)
        with torch.no_grad():
            chained = made.get_submodule(name)
            errors.append(sum(float((chained(x) - layer(x)).square().sum()) for x in inputs))
    assert errors[1] < errors[0]
    assert weights[1] > weights[0]


def test_whitened_channel_error_is_that_of_the_dropped_singular_values() -> None:
    tensor = weight(6, 5, 2, 2).double()
    samples = torch.randn(400, 20, generator=generator(), dtype=torch.float64)
    samples[:, 3] = 5 * samples[:, 0]
    moment = samples.t() @ samples / 400
    factors = decompose("channel", tensor, (3,), moment=moment, generator=generator())
    values = torch.linalg.svdvals(samples @ tensor.flatten(1).t() / 20)
    found = output_error(tensor, compose("channel", factors, tensor.shape), moment)
    assert found == pytest.approx(float(values[3:].square().sum()), rel=1e-3)


def test_whitened_spatial_never_errs_more_than_plain_under_any_moments() -> None:
    for seed in range(5):
        tensor = weight(6, 5, 3, 3, seed)
        samples = torch.randn(60, 45, generator=torch.Generator().manual_seed(seed)).double()
        moment = samples.t() @ samples / 60
        errors = [
            output_error(
                tensor,
                compose(
                    "spatial",
                    decompose("spatial", tensor, (4,), moment=known, generator=generator()),
                    tensor.shape,
                ),
                moment,
            )
            for known in (None, moment)
        ]
        assert errors[1] <= errors[0]


def test_moments_are_those_of_all_patches_when_none_is_left_out(model: nn.Module) -> None:
    batch = torch.randn(3, *SHAPE, generator=generator())
    found = input_moments(model, ["stem"], [batch], generator())["stem"]
    columns = functional.unfold(batch, 3, padding=1).transpose(1, 2).reshape(-1, 27).double()
    torch.testing.assert_close(found, columns.t() @ columns / len(columns), rtol=1e-4, atol=1e-5)


def test_whitening_without_calibration_inputs_is_refused(model: nn.Module) -> None:
    decision = Factorize(method="spatial", rank_ratio=0.5, whiten=True)
    assert LowRank().needs(decision) == {"calibration"}
    assert LowRank().needs(dataclasses.replace(decision, whiten=False)) == frozenset()
    with pytest.raises(PlanInvalid, match=r"'odd': factorize with whiten needs calibration"):
        LowRank().apply(model, {"odd": decision}, context_of(model))


# The primitive ------------------------------------------------------------------------------

ALL: dict[str, Decision] = {
    "stem": Factorize(method="tucker2", rank_ratio=0.7),
    "odd": Factorize(method="spatial", rank_ratio=0.5),
    "same": Factorize(method="cp", rank_ratio=0.5),
    "point": Factorize(method="svd", rank_ratio=0.5),
    "hidden": Factorize(method="kronecker", rank_ratio=0.5),
    "classifier": Factorize(method="channel", rank_ratio=0.75),
}


def test_the_cost_table_equals_counting_and_names_of_other_layers_stay(
    model: nn.Module, context: ModuleContext
) -> None:
    made, record = LowRank().apply(model, ALL, context)
    LowRank().verify(model, made, record)
    cost = context.survey.costs.cost(Plan.of({site: [d] for site, d in ALL.items()}))
    assert (cost.params, cost.macs) == (count_params(made), count_macs(made, SHAPE))
    assert cost.params < count_params(model)
    untouched = {key for key in model.state_dict() if key.split(".")[0] in ("norm", "depthwise")}
    keys = set(made.state_dict())
    assert untouched <= keys
    assert {"odd.0.weight", "odd.1.weight", "odd.1.bias"} <= keys
    assert {"same.0.weight", "same.3.weight", "hidden.1.weight", "hidden.4.weight"} <= keys


def test_replay_rebuilds_the_structure_without_data(
    model: nn.Module, context: ModuleContext
) -> None:
    whitened: dict[str, Decision] = {
        **ALL,
        "odd": Factorize(method="spatial", rank_ratio=0.5, whiten=True),
    }
    made, record = LowRank().apply(model, whitened, context)
    data = json.loads(json.dumps(record.to_json()))
    assert data["layers"]["odd"] == {"method": "spatial", "ranks": [10], "whiten": True}
    assert record.invariants() == ()
    rebuilt = LowRank().replay(model, data, context_of(model))
    rebuilt.load_state_dict(made.state_dict(), strict=True)
    inputs = torch.randn(2, *SHAPE)
    assert torch.equal(rebuilt(inputs), made(inputs))
    with pytest.raises(PlanInvalid, match="'nowhere' is no convolution"):
        LowRank().replay(model, {"layers": {"nowhere": data["layers"]["odd"]}}, context)


def test_verification_finds_a_changed_factor_and_a_lost_bias(
    model: nn.Module, context: ModuleContext
) -> None:
    made, record = LowRank().apply(model, {"odd": ALL["odd"]}, context)
    for key, message in (("odd.0.weight", "its factors miss"), ("odd.1.bias", "its bias is not")):
        broken = copy.deepcopy(made)
        with torch.no_grad():
            broken.get_parameter(key).mul_(1.1)
        with pytest.raises(NotCertified, match=f"Layer 'odd': {message}"):
            LowRank().verify(model, broken, record)
    with pytest.raises(NotCertified, match="'odd' is a Conv2d"):
        LowRank().verify(model, model, record)


def test_shared_and_grouped_and_unknown_layers_are_refused() -> None:
    shared = seeded(SharedNet)
    context = context_of(shared)
    decision = Factorize(method="spatial", rank_ratio=0.5)
    for name, reason in (
        ("again", "calls it 2 times"),
        ("first", "shares its parameters with 'second'"),
        ("nowhere", "'nowhere' is no layer"),
    ):
        with pytest.raises(PlanInvalid, match=reason):
            LowRank().apply(shared, {name: decision}, context)
    grouped = seeded(FixedWidthNet)
    with pytest.raises(PlanInvalid, match="'conv2' cannot be factorized by spatial: it has 2 gro"):
        LowRank().apply(grouped, {"conv2": decision}, context_of(grouped))


def test_a_layer_that_lives_under_two_names_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.left = nn.Conv2d(8, 8, 3, padding=1)
            self.right = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.right(self.left(self.stem(x))).mean((2, 3)))
            return logits

    net = seeded(Twice)
    context = context_of(net)
    net.right = net.left
    decision = Factorize(method="channel", rank_ratio=0.5)
    with pytest.raises(PlanInvalid, match=r"'left' .*shares its parameters with 'right'"):
        LowRank().apply(net, {"left": decision}, context)


def test_a_decision_for_the_model_splits_every_inner_layer_that_can_be() -> None:
    net = seeded(MobileNet).train()
    context = context_of(net)
    decision = Factorize(method="spatial", rank_ratio=0.5)
    made, record = LowRank().apply(net, {MODEL_SITE: decision}, context)
    assert not {"stem", "classifier"} & set(record.layers)
    assert "blocks.0.expand" in record.layers
    assert not [name for name in record.layers if name.endswith("depthwise")]
    assert made.training
    assert made.get_submodule("blocks.0.expand").training
    LowRank().verify(net, made, record)
    model_site = context.survey.sites[-1]
    assert LowRank().applicable(model_site, context.survey.costs) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("odd", None),
        ("hidden", None),
        ("depthwise", "it has 16 groups, each of which is thin already"),
    ],
)
def test_applicability_is_told_in_words(
    context: ModuleContext, name: str, reason: str | None
) -> None:
    assert LowRank().applicable(layer_site(context, name), context.survey.costs) == reason
    channels = dataclasses.replace(layer_site(context, name), kind="channels")
    assert LowRank().applicable(channels, context.survey.costs) == (
        f"site {name!r} is no single layer"
    )


def test_a_narrow_layer_has_no_rank_worth_splitting() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(14 * 14, 10)
    )
    costs = survey(net, SHAPE).costs
    site = next(s for s in survey(net, SHAPE).sites if s.name == "1" and s.kind == "layer")
    assert LowRank().applicable(site, costs) == "its break-even rank is 0.89; 2 is required"


def test_weights_in_other_memory_formats_give_the_same_factors(
    model: nn.Module, context: ModuleContext
) -> None:
    strided = copy.deepcopy(model).to(memory_format=torch.channels_last)
    decisions = {"odd": ALL["odd"], "same": ALL["same"]}
    first, _ = LowRank().apply(model, decisions, context)
    second, _ = LowRank().apply(strided, decisions, context)
    for key, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], tensor)
