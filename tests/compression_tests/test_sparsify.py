"""Primitive `sparsify`: exact zeros, surgery that beats magnitude, honest sizes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compression.apply import ApplyContext
from compression.artifact import Preprocessing
from compression.cost import CostTable
from compression.decisions import Decision, Sparsify
from compression.errors import NotCertified, PlanInvalid
from compression.methods import Methods
from compression.models.cifar_resnet import cifar_resnet
from compression.preprocess import preprocess
from compression.primitives.context import ModuleContext
from compression.primitives.optimal_brain_surgeon import hessians, prune_layer, solver_shape
from compression.primitives.sparsify import Sparsification, Sparsity
from compression.recover.masks import KeepMasks
from compression.site import MODEL_SITE, Site
from compression.sparse_size import sparse_bytes
from compression.survey import survey
from tests import cifar
from tests.builders import SHAPE, MobileNet, NormNet, SharedNet, seeded
from tests.contracts.primitive import PrimitiveContract


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(count: int = 16, seed: int = 5) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def context_of(model: nn.Module) -> ModuleContext:
    built = ApplyContext.build(model, survey(model, SHAPE), SHAPE, calibration=[inputs()])
    return built.module


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(NormNet)


@pytest.fixture(scope="module")
def context(model: nn.Module) -> ModuleContext:
    return context_of(model)


def site_of(context: ModuleContext, kind: str, name: str) -> Site:
    return next(s for s in context.survey.sites if (s.kind, s.name) == (kind, name))


def weight(model: nn.Module, layer: str) -> Tensor:
    return model.get_submodule(layer).get_parameter("weight").detach()


def apply(
    model: nn.Module, context: ModuleContext, /, **decisions: Decision
) -> tuple[nn.Module, Sparsity]:
    after, record = Sparsification().apply(model, decisions, context)
    Sparsification().verify(model, after, record)
    return after, record


class TestSparsification(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> Sparsification:
        return Sparsification()

    @pytest.fixture
    def site(self, context: ModuleContext) -> Site:
        return site_of(context, "layer", "conv3")

    @pytest.fixture
    def other_site(self, context: ModuleContext) -> Site:
        return site_of(context, "channels", "conv3")

    @pytest.fixture
    def costs(self, context: ModuleContext) -> CostTable:
        return context.survey.costs

    @pytest.fixture(params=["magnitude", "obs"])
    def subject_and_context(
        self, model: nn.Module, context: ModuleContext, request: pytest.FixtureRequest
    ) -> tuple[nn.Module, Any, Mapping[str, Decision]]:
        return model, context, {"conv3": Sparsify(sparsity=0.5, criterion=request.param)}

    def content(self, subject: Any) -> object:
        assert isinstance(subject, nn.Module)
        return {name: tensor.tolist() for name, tensor in subject.state_dict().items()}

    def test_it_offers_what_the_job_lists_most_zeros_first(self, site: Site) -> None:
        methods = Methods(sparsify=("0.5", "0.9 obs", "0.75 1:4"))
        options = Sparsification().space(site, methods)
        assert options == (
            Sparsify(sparsity=0.9, criterion="obs"),
            Sparsify(sparsity=0.75, pattern="1:4"),
            Sparsify(sparsity=0.5),
            None,
        )
        needs = [Sparsification().needs(option) for option in options if option]
        assert needs == [frozenset({"calibration"}), frozenset(), frozenset()]

    def test_the_model_needs_a_layer_between_its_ends(
        self, site: Site, context: ModuleContext, costs: CostTable
    ) -> None:
        whole = site_of(context, "model", MODEL_SITE)
        assert Sparsification().applicable(whole, costs) is None
        short = dataclasses.replace(costs, layers=costs.layers[:1])
        assert "the first and the last" in str(Sparsification().applicable(whole, short))
        frozen = dataclasses.replace(site, frozen="because the user said so")
        assert Sparsification().applicable(frozen, costs) == "because the user said so"


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
@pytest.mark.parametrize("sparsity", [0.001, 0.3, 0.5, 0.77, 0.9999])
def test_the_number_of_zeros_is_exact(
    model: nn.Module, context: ModuleContext, sparsity: float, criterion: Any
) -> None:
    after, record = apply(model, context, conv3=Sparsify(sparsity=sparsity, criterion=criterion))
    planned = min(round(1080 * sparsity), 1079)
    assert int((weight(after, "conv3") == 0).sum()) == planned
    assert record.to_json() == {
        "conv3": {"zeros": planned, "sparsity": planned / 1080, "pattern": "unstructured"}
    }
    (hook,) = record.invariants()
    assert isinstance(hook, KeepMasks)
    assert torch.equal(hook.masks["conv3"], weight(after, "conv3") != 0)


def test_magnitude_keeps_the_largest_as_they_were(model: nn.Module, context: ModuleContext) -> None:
    after, _ = apply(model, context, conv3=Sparsify(sparsity=0.6))
    old, new = weight(model, "conv3"), weight(after, "conv3")
    kept = new != 0
    assert torch.equal(new[kept], old[kept])
    assert old[kept].abs().min() > old[~kept].abs().max()


def test_the_model_has_one_threshold_and_dense_ends(
    model: nn.Module, context: ModuleContext
) -> None:
    after, record = apply(model, context, model=Sparsify(sparsity=0.7))
    assert set(record.masks) == {"conv2", "conv3"}
    assert sum(record.zeros().values()) == round(0.7 * (720 + 1080))
    old = {name: weight(model, name).abs() for name in record.masks}
    kept = torch.cat([old[name][mask] for name, mask in record.masks.items()])
    gone = torch.cat([old[name][~mask] for name, mask in record.masks.items()])
    assert kept.min() > gone.max()
    for name in ("conv1.weight", "classifier.weight", "conv2.bias"):
        assert torch.equal(after.state_dict()[name], model.state_dict()[name])


def test_a_layer_with_its_own_decision_is_not_the_models(
    model: nn.Module, context: ModuleContext
) -> None:
    _, record = apply(model, context, model=Sparsify(sparsity=0.9), conv2=Sparsify(sparsity=0.5))
    assert record.zeros() == {"conv2": 360, "conv3": 972}


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_patterns_run_along_the_reduction_axis(
    model: nn.Module, context: ModuleContext, criterion: Any
) -> None:
    decision = Sparsify(sparsity=0.5, pattern="2:4", criterion=criterion)
    after, record = apply(model, context, conv3=decision)
    rows = weight(after, "conv3").reshape(12, 90)
    # 90 = 22 groups of four and two weights that stay.
    assert bool(((rows[:, :88].reshape(-1, 4) != 0).sum(1) == 2).all())
    assert bool((rows[:, 88:] != 0).all())
    assert record.zeros() == {"conv3": 12 * 44}
    after, _ = apply(
        model, context, conv3=Sparsify(sparsity=2 / 3, pattern="1:3", criterion=criterion)
    )
    rows = weight(after, "conv3").reshape(-1, 3)
    assert bool(((rows != 0).sum(1) == 1).all())


def test_grouped_depthwise_and_odd_layers() -> None:
    net = seeded(MobileNet)
    context = context_of(net)
    depthwise = "blocks.1.depthwise"
    after, record = Sparsification().apply(
        net, {MODEL_SITE: Sparsify(sparsity=0.5, criterion="obs")}, context
    )
    Sparsification().verify(net, after, record)
    assert record.zeros()[depthwise] == round(weight(net, depthwise).numel() / 2)
    assert "stem" not in record.masks
    with pytest.raises(PlanInvalid, match="rows of 6 weights; pattern '4:8' needs 8"):
        Sparsification().apply(
            net, {"blocks.0.excite": Sparsify(sparsity=0.5, pattern="4:8")}, context
        )
    _, record = Sparsification().apply(
        net, {MODEL_SITE: Sparsify(sparsity=0.5, pattern="4:8")}, context
    )
    assert "blocks.0.excite" not in record.masks


def test_a_shared_weight_is_decided_once() -> None:
    net = seeded(SharedNet)
    context = context_of(net)
    after, record = Sparsification().apply(net, {MODEL_SITE: Sparsify(sparsity=0.5)}, context)
    Sparsification().verify(net, after, record)
    assert len({"first", "second"} & set(record.masks)) == 1
    assert after.get_parameter("second.weight") is after.get_parameter("first.weight")
    both = {"first": Sparsify(sparsity=0.5), "second": Sparsify(sparsity=0.7)}
    with pytest.raises(PlanInvalid, match="'first' and 'second' have one weight"):
        Sparsification().apply(net, both, context)


def test_parts_of_a_factorized_layer_are_decided_by_its_name(context: ModuleContext) -> None:
    net = seeded(NormNet)
    net.conv3 = nn.Sequential(nn.Conv2d(10, 4, 3, padding=1, bias=False), nn.Conv2d(4, 12, 1))
    after, record = apply(net, context, conv3=Sparsify(sparsity=0.5))
    assert set(record.masks) == {"conv3.0", "conv3.1"}
    assert sum(record.zeros().values()) == 204
    assert after.state_dict().keys() == net.state_dict().keys()


def test_odd_subjects_stay_as_they_are(context: ModuleContext) -> None:
    net = seeded(NormNet).to(memory_format=torch.channels_last).train()
    plain = seeded(NormNet)
    for decision in (
        Sparsify(sparsity=0.5),
        Sparsify(sparsity=0.5, criterion="obs"),
        Sparsify(sparsity=0.5, pattern="2:4"),
    ):
        after, _ = apply(net, context, model=decision)
        assert after.training
        assert after.get_submodule("conv2").training
        wanted, _ = apply(plain, context, model=decision)
        for name in ("conv2", "conv3"):
            torch.testing.assert_close(
                weight(after, name), weight(wanted, name), rtol=1e-3, atol=1e-4
            )
    replayed = Sparsification().replay(net, {}, context)
    assert replayed.state_dict().keys() == net.state_dict().keys()


def test_refusals(model: nn.Module, context: ModuleContext) -> None:
    empty = dataclasses.replace(context, calibration=())
    with pytest.raises(PlanInvalid, match=r"'conv3'.*'obs' needs calibration"):
        Sparsification().apply(model, {"conv3": Sparsify(criterion="obs")}, empty)
    with pytest.raises(PlanInvalid, match="Site 'norm' is a LayerNorm"):
        Sparsification().apply(model, {"norm": Sparsify()}, context)
    with pytest.raises(PlanInvalid, match="Site 'nowhere' is unknown"):
        Sparsification().apply(model, {"nowhere": Sparsify()}, context)


def test_verification_finds_what_is_wrong(model: nn.Module, context: ModuleContext) -> None:
    def changed(layer: str, place: Tensor, value: float) -> nn.Module:
        other = copy.deepcopy(after)
        with torch.no_grad():
            other.get_parameter(layer)[tuple(place.tolist())] = value
        return other

    after, record = apply(model, context, conv3=Sparsify(sparsity=0.5))
    mask = record.masks["conv3"]
    gone, kept = (~mask).nonzero()[0], mask.nonzero()[0]
    verify = Sparsification().verify
    with pytest.raises(NotCertified, match="'conv3' has 1 weights that its mask sets"):
        verify(model, changed("conv3.weight", gone, 1.0), record)
    with pytest.raises(NotCertified, match="'conv3': weights that its mask keeps"):
        verify(model, changed("conv3.weight", kept, 1.0), record)
    with pytest.raises(NotCertified, match="'conv3' has weights that are not finite"):
        verify(model, changed("conv3.weight", kept, float("nan")), record)
    with pytest.raises(NotCertified, match=r"'conv2\.bias' changed"):
        verify(model, changed("conv2.bias", torch.tensor([0]), 1.0), record)
    more = dataclasses.replace(record, decisions={"conv3": Sparsify(sparsity=0.6)})
    with pytest.raises(NotCertified, match=r"'conv3' has 540 zeros among 1080.*the plan says 648"):
        verify(model, after, more)
    pattern = dataclasses.replace(record, decisions={"conv3": Sparsify(pattern="2:4")})
    with pytest.raises(NotCertified, match=r"keeps . of 4 in a row; 2 are allowed"):
        verify(model, after, pattern)


def output_error(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    change = (before - after).double()
    return float(torch.einsum("grc,gcd,grd->", change, hessian.double(), change)) / 2


def test_removing_one_weight_follows_the_closed_form() -> None:
    """Of one row: the least w^2 / [H^-1]_jj goes, the rest moves by -w / [H^-1]_jj H^-1 e_j."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 50, generator=generator)
    hessian = (2 * x @ x.T)[None]
    damped = hessian[0].double() + 0.01 * hessian[0].diagonal().mean() * torch.eye(3).double()
    inverse = torch.linalg.inv(damped)
    row = torch.tensor([0.02, 1.0, -2.0])
    pruned, mask = prune_layer(row.view(1, 1, 3), hessian, zeros=1)
    assert mask.view(-1).tolist() == [False, True, True]
    expected = row.double() - row[0] / inverse[0, 0] * inverse[:, 0]
    torch.testing.assert_close(pruned.view(-1).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_of_m", [None, (2, 4)])
def test_surgery_loses_less_of_the_outputs_than_magnitude(n_of_m: tuple[int, int] | None) -> None:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(160, 160, generator=generator)
    x = mixing @ torch.randn(160, 600, generator=generator)
    hessian = (2 * x @ x.T / 600)[None]
    before = torch.randn(1, 20, 160, generator=generator)
    surgery, mask = prune_layer(before, hessian, zeros=1600, n_of_m=n_of_m)
    blind, _ = prune_layer(before, torch.zeros_like(hessian), zeros=1600, n_of_m=n_of_m)
    assert int((~mask).sum()) == 1600
    assert int((blind == 0).sum()) == 1600
    assert torch.equal(blind[blind != 0], before[blind != 0])
    assert output_error(before, surgery, hessian) < 0.85 * output_error(before, blind, hessian)


def test_hessians_are_those_of_the_unfolded_inputs() -> None:
    """With few positions all of them are used: the outputs' energy is w H w^T / 2."""
    x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    layers: Mapping[str, nn.Module] = {
        "grouped": nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=False),
        "dilated": nn.Conv2d(4, 3, 3, dilation=2, bias=False),
        "circular": nn.Conv2d(4, 3, (3, 1), padding="same", padding_mode="circular", bias=False),
        "linear": nn.Linear(6, 3, bias=False),
    }
    for name, layer in layers.items():
        net = nn.Sequential(layer).eval()
        (hessian,) = hessians(net, ["0"], [x[:2], x[2:]], 0).values()
        with torch.no_grad():
            out: Tensor = net(x)
        energy = float(out.square().sum()) / (out.numel() / weight(net, "0").shape[0])
        zero = torch.zeros(solver_shape(layer))
        found = output_error(weight(net, "0").reshape(solver_shape(layer)), zero, hessian)
        assert found == pytest.approx(energy, rel=1e-4), name
    line = nn.Sequential(nn.Conv1d(4, 3, 3, padding=1, bias=False))
    assert hessians(line, ["0"], [x[:, :, 0]], 0)["0"].shape == (1, 12, 12)
    cube = nn.Sequential(nn.Conv3d(1, 3, 2, bias=False))
    assert not hessians(cube, ["0"], [x[:, None]], 0)["0"].any()


@given(
    st.integers(0, 5000),
    st.floats(0, 1),
    st.integers(1, 32),
    st.sampled_from(["unstructured", "2:4"]),
)
def test_sparse_bytes_are_never_more_than_dense(
    n: int, sparsity: float, bits: int, pattern: str
) -> None:
    size = sparse_bytes(n, sparsity, bits, pattern)
    assert 0 <= size <= -(-n * bits // 8)
    assert sparse_bytes(n, 1.0, bits, pattern) <= size


def test_sparse_bytes_by_hand() -> None:
    assert sparse_bytes(1000, 0.7, 8, "unstructured") == 125 + 300
    assert sparse_bytes(1000, 0.7, 2, "unstructured") == 125 + 75
    assert sparse_bytes(1000, 0.01, 8, "unstructured") == 1000
    assert sparse_bytes(1024, 0.75, 8, "1:4") == 256 + 64
    # A bit for each of eight, or three for each of four: the bitmask is smaller.
    assert sparse_bytes(1024, 0.5, 8, "4:8") == 512 + 128


@pytest.mark.slow
def test_surgery_beats_magnitude_on_a_real_network(real_data: Path) -> None:
    net = cifar_resnet(20).eval()
    net.load_state_dict(cifar.state_dict(real_data, "cifar_resnet20"))
    pixels = cifar.images(real_data, "test").transpose(0, 3, 1, 2)
    seen = cifar.images(real_data, "train_0").transpose(0, 3, 1, 2)
    scaling = Preprocessing(scale=255.0, mean=cifar.MEAN, std=cifar.STD)
    labels = torch.from_numpy(cifar.labels(real_data, "test")[:1000:2])
    test = preprocess(np.ascontiguousarray(pixels[:1000:2]), scaling)
    calibration = [preprocess(np.ascontiguousarray(seen[:128]), scaling)]
    shape = (3, 32, 32)
    built = ApplyContext.build(net, survey(net, shape), shape, calibration=calibration)

    def accuracy(criterion: Any) -> float:
        decisions = {MODEL_SITE: Sparsify(sparsity=0.7, criterion=criterion)}
        after, record = Sparsification().apply(net, decisions, built.module)
        Sparsification().verify(net, after, record)
        with torch.inference_mode():
            return float((after(test).argmax(1) == labels).float().mean())

    # 85 % and 72 % on 2000 images, without recalibration.
    assert accuracy("obs") > accuracy("magnitude") + 0.05
