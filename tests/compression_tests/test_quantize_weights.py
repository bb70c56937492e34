"""Every grid is what its paper says, and training ends exactly on it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from compression.apply import ApplyContext, apply
from compression.cost import CostTable
from compression.decisions import Decision, QuantizeWeights, Sparsify, WeightQuantizer
from compression.errors import NotCertified, PlanInvalid
from compression.methods import Methods
from compression.plan import Plan
from compression.primitives.quantize_weights import GRIDS, LowBitWeights, WeightQuantization
from compression.primitives.weight_grids import (
    learned_step,
    lq,
    normalized,
    outlier,
    power_of_two,
    uniform,
)
from compression.primitives.weight_grids.levels import LevelGrid
from compression.primitives.weight_layers import half, weight_layer
from compression.recover.grid_hold import STEP_NAME
from compression.recover.training_state import Checkpoints, TrainingState
from compression.site import Site
from compression.survey import survey
from tests.compression_tests.shared_weights import (
    RECIPE,
    SHAPE,
    context_of,
    fine_tune,
    small_net,
    small_survey,
)
from tests.contracts.primitive import PrimitiveContract

QUANTIZERS: tuple[WeightQuantizer, ...] = get_args(WeightQuantizer)


def gaussian(rows: int = 6, columns: int = 400, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.05, 0.4, rows)[:, None]
    return scale * torch.randn(rows, columns, generator=generator)


def squared(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum())


class TestWeightQuantization(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> WeightQuantization:
        return WeightQuantization()

    @pytest.fixture
    def site(self) -> Site:
        return Site(name="model", kind="model", channels=0, macs=0, params=9999)

    @pytest.fixture
    def other_site(self) -> Site:
        return Site(name="0", kind="channels", channels=32, macs=0, params=9999)

    @pytest.fixture
    def costs(self) -> CostTable:
        return small_survey().costs

    @pytest.fixture(params=QUANTIZERS)
    def subject_and_context(
        self, request: pytest.FixtureRequest
    ) -> tuple[nn.Module, Any, Mapping[str, Decision]]:
        model = small_net()
        decision = QuantizeWeights(bits=3, quantizer=request.param)
        return model, context_of(model), {"model": decision}

    def content(self, subject: Any) -> object:
        assert isinstance(subject, nn.Module)
        return {name: tensor.tolist() for name, tensor in subject.state_dict().items()}

    def test_options_are_ascending_in_bits(self, site: Site) -> None:
        options = WeightQuantization().space(site, Methods(quantize_weights=("4", "2 lq")))
        lowest = QuantizeWeights(bits=2, quantizer="lq")
        assert options == (lowest, QuantizeWeights(bits=4), None)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_more_bits_are_nearer_and_no_row_takes_more_values(
    quantizer: WeightQuantizer, bits: int
) -> None:
    rows = gaussian()
    grid = GRIDS[quantizer](rows, bits)
    found = grid.project(rows)
    assert max(len(torch.unique(row)) for row in found) <= grid.most_values(rows.numel())
    if bits < 8 and quantizer != "pow2":
        assert squared(GRIDS[quantizer](rows, bits + 1).project(rows), rows) < squared(found, rows)
    if quantizer != "outlier":
        assert grid.most_values(rows.numel()) <= 2**bits
        torch.testing.assert_close(grid.project(found), found)
    zeros = grid.project(torch.zeros_like(rows))
    assert zeros.isfinite().all()
    assert GRIDS[quantizer](torch.zeros(2, 9), bits).project(torch.zeros(2, 9)).isfinite().all()


def test_uniform_levels_are_integers_times_a_float16_step() -> None:
    rows = gaussian()
    grid = uniform.fit(rows, 4)
    assert torch.equal(half(grid.step), grid.step)
    codes = grid.project(rows) / grid.step
    assert torch.equal(codes, codes.round())
    assert float(codes.abs().max()) == 7


def test_the_step_is_the_least_squares_one_for_its_codes() -> None:
    """d/ds |w - s k|^2 = 0 at s = <w, k> / <k, k>; by hand: (2*1 + 3*1) / 2 = 2.5."""
    grid = uniform.UniformGrid(torch.tensor([[2.0]]), 1).refit(torch.tensor([[2.0, -3.0, 0.5]]))
    assert float(grid.step) == 2.5
    rows = gaussian(1)
    best = uniform.best_steps(rows, 3)
    error = squared(uniform.UniformGrid(best, 3).project(rows), rows)
    every = torch.linspace(0.005, 0.2, 400)
    least = min(squared(uniform.UniformGrid(s.reshape(1, 1), 3).project(rows), rows) for s in every)
    assert error <= 1.005 * least


def test_lq_finds_a_basis_that_made_the_weights() -> None:
    """Weights that are sums of +-0.25 and +-0.75 are reproduced."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (3, 200, 2), generator=generator) * 2.0 - 1
    rows = codes @ torch.tensor([0.25, 0.75])
    grid = lq.fit(rows, 2)
    torch.testing.assert_close(grid.project(rows), rows, atol=1e-3, rtol=1e-3)


def test_lq_solves_the_normal_equations() -> None:
    """By hand: v = (B B^T)^-1 B w with B from the nearest levels of the former basis."""
    rows, basis = gaussian(1, 50), torch.tensor([[0.1, 0.02]])
    levels = {(a, b): a * 0.1 + b * 0.02 for a in (-1.0, 1.0) for b in (-1.0, 1.0)}
    chosen = [min(levels, key=lambda e: abs(levels[e] - float(w))) for w in rows[0]]
    design = torch.tensor(chosen)
    expected = torch.linalg.solve(design.T @ design, design.T @ rows[0])
    torch.testing.assert_close(lq.alternate(rows, basis)[0], expected, atol=1e-5, rtol=1e-4)
    moved = lq.LearnedBasisGrid(basis).refit(rows).basis[0]
    torch.testing.assert_close(moved, 0.9 * basis[0] + 0.1 * expected)


def test_lq_alternation_never_raises_the_error() -> None:
    rows = gaussian()
    basis = rows.abs().mean(1, keepdim=True) * torch.tensor([[0.3, 0.6, 1.1]])
    errors = []
    for _ in range(8):
        errors.append(squared(lq.LearnedBasisGrid(basis).project(rows), rows))
        basis = lq.alternate(rows, basis)
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(errors))


def test_the_gradient_of_the_step_is_that_of_its_paper() -> None:
    """Equation 3 at s = 1, Q_N = 2, Q_P = 1: -w + round(w) inside, -2 below, 1 above."""
    grid = learned_step.LearnedStepGrid(torch.tensor(1.0), 2, 1)
    rows, ones = torch.tensor([[0.3, -0.8, -5.0, 4.0]]), torch.ones(1, 4)
    of_step, of_rows = grid.gradients(rows, ones)
    expected = (-0.3 + 0) + (0.8 - 1) - 2 + 1
    assert float(of_step) == pytest.approx(expected / (4 * 1) ** 0.5)
    assert of_rows.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_the_step_follows_its_gradient_to_lower_error() -> None:
    """The estimator of equation 3 is exact for the squared error away from rounding's jumps."""
    rows, step = gaussian(1, 2000), torch.tensor(0.08)
    before = learned_step.LearnedStepGrid(step, 4, 3)
    residual = 2 * (before.project(rows) - rows)
    of_step, _ = before.gradients(rows, residual)
    after = learned_step.LearnedStepGrid(step - 1e-3 * of_step.sign(), 4, 3)
    assert squared(after.project(rows), rows) < squared(before.project(rows), rows)


def test_outliers_are_the_largest_hundredth_in_float16() -> None:
    rows = gaussian(4, 500)
    grid = outlier.fit(rows, 3)
    found = grid.project(rows)
    largest = rows.abs().reshape(-1).topk(20).indices
    assert torch.equal(found.reshape(-1)[largest], half(rows).reshape(-1)[largest])
    rest = torch.ones(rows.numel(), dtype=torch.bool)
    rest[largest] = False
    assert len(torch.unique(found.reshape(-1)[rest])) <= 7
    heavy = rows.clone()
    heavy[0, 0] = 50.0
    spread = squared(outlier.fit(heavy, 3).project(heavy), heavy)
    assert spread < 1.1 * squared(found, rows)


@pytest.mark.parametrize(
    ("greatest", "bits", "expected"),
    [(1.0, 5, (0, -7)), (1.6, 3, (1, 0)), (0.74, 3, (-1, -2)), (0.76, 2, (0, 0))],
)
def test_powers_of_two(greatest: float, bits: int, expected: tuple[int, int]) -> None:
    assert power_of_two.exponents(greatest, bits) == expected
    grid = power_of_two.fit(torch.tensor([[greatest, -greatest / 3]]), bits)
    first, last = expected
    powers = [2.0**n for n in range(last, first + 1)]
    assert grid.levels[0].tolist() == [-p for p in reversed(powers)] + [0.0, *powers]
    assert grid.most_values(1) == 2 ** (bits - 1) + 1


def test_powers_of_two_round_as_equation_4() -> None:
    grid = LevelGrid.of(torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]]))
    rows = torch.tensor([[0.24, 0.26, 0.74, 0.76, 1.4, -0.26]])
    assert grid.project(rows).tolist() == [[0.0, 0.5, 0.5, 1.0, 1.0, -0.5]]


def test_normalized_filters_share_one_grid() -> None:
    row = gaussian(1)
    rows = torch.cat([row, 8 * row, 0.125 * row])
    found = normalized.fit(rows, 3).project(rows)
    torch.testing.assert_close(found[1], 8 * found[0])
    torch.testing.assert_close(found[2], 0.125 * found[0])


def test_the_ends_keep_eight_bits() -> None:
    model = small_net()
    decision = {"model": QuantizeWeights(bits=2, quantizer="lq"), "7": QuantizeWeights(bits=4)}
    _, record = WeightQuantization().apply(model, decision, context_of(model))
    facts = record.to_json()["layers"]
    assert {n: (f["bits"], f["quantizer"]) for n, f in facts.items()} == {
        "0": (8, "uniform"),
        "3": (2, "lq"),
        "4": (2, "lq"),
        "7": (4, "uniform"),
        "10": (2, "lq"),
        "12": (8, "uniform"),
    }
    assert facts["0"]["snr_db"] > 35


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_training_ends_on_the_grid_with_zeros_in_place(quantizer: WeightQuantizer) -> None:
    model = small_net()
    weight = weight_layer(model, "10").weight
    with torch.no_grad():
        weight.masked_fill_(weight.abs() < weight.abs().median(), 0.0)
    decision = QuantizeWeights(bits=3, quantizer=quantizer)
    after, record = WeightQuantization().apply(model, {"model": decision}, context_of(model))
    before = weight_layer(after, "10").weight.detach().clone()
    keys = list(after.state_dict())
    curve = fine_tune(after, record.invariants())
    assert curve.points[-1][1] < 0.8 * curve.points[0][1]
    assert list(after.state_dict()) == keys
    assert not hasattr(after.get_submodule("10"), STEP_NAME)
    now = weight_layer(after, "10").weight.detach()
    assert not torch.equal(now, before)
    assert torch.equal(now[weight == 0], torch.zeros(int((weight == 0).sum())))
    for name, layer in record.layers.items():
        rows = weight_layer(after, name).weight.detach().flatten(1)
        allowed = layer.held.grid.most_values(rows.numel()) + (layer.held.zeros is not None)
        assert max(len(torch.unique(row)) for row in rows) <= allowed


def test_a_learned_step_moves() -> None:
    """Weights start even in [-a, a], where three levels are best at 0 and +-2a/3."""
    model = small_net()
    decision = {"10": QuantizeWeights(bits=2, quantizer="lsq")}
    after, record = WeightQuantization().apply(model, decision, context_of(model))
    before = torch.unique(weight_layer(after, "10").weight.detach())
    assert before.tolist() == pytest.approx([-0.03402, 0.0, 0.03402], abs=2e-4)
    fine_tune(after, record.invariants())
    now = torch.unique(weight_layer(after, "10").weight.detach())
    assert 2 <= len(now) <= 4
    steps = torch.unique(now.diff())
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert abs(float(steps[0]) - 0.03402) > 2e-3


@pytest.mark.parametrize("quantizer", ["uniform", "lq", "lsq", "outlier", "normalized"])
def test_an_interrupted_training_ends_in_the_same_weights(quantizer: WeightQuantizer) -> None:
    model = small_net()
    decision = QuantizeWeights(bits=3, quantizer=quantizer)
    after, record = WeightQuantization().apply(model, {"model": decision}, context_of(model))
    recipe = dataclasses.replace(RECIPE, steps=4)
    states: list[TrainingState] = []
    resumed, whole = copy.deepcopy(after), copy.deepcopy(after)
    checkpoints = Checkpoints(every_steps=2, keep=states.append)
    fine_tune(whole, record.invariants(), recipe, checkpoints=checkpoints)
    fine_tune(resumed, record.invariants(), recipe, state=states[0])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_model_that_was_trained_since_is_quantized_as_it_is() -> None:
    model = small_net()
    plan = Plan.of({"model": [Sparsify(sparsity=0.5), QuantizeWeights(bits=4)]})
    context = ApplyContext.build(model, survey(model, SHAPE), SHAPE)
    sparse = apply(plan.before_codes(), context)
    fine_tune(sparse.model, sparse.invariants(), dataclasses.replace(RECIPE, steps=4))
    made = apply(plan, context, after=sparse)
    held = made.stages[-1].record
    assert isinstance(held, LowBitWeights)
    then = weight_layer(sparse.model, "10").weight.detach()
    assert torch.equal(held.layers["10"].held.origin, then)
    assert not torch.equal(then[then != 0], weight_layer(model, "10").weight.detach()[then != 0])
    fine_tune(made.model, made.invariants(), dataclasses.replace(RECIPE, steps=4))
    now = weight_layer(made.model, "10").weight.detach()
    assert float(now[then == 0].abs().max()) == 0.0
    assert max(len(torch.unique(row)) for row in now) <= 16


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.3, r"channel takes 5 distinct weights; 4 are"), (0.0, r"signal to noise")],
)
def test_verification_finds(value: float, message: str) -> None:
    model = small_net()
    decision = {"10": QuantizeWeights(bits=2, quantizer="lq")}
    after, record = WeightQuantization().apply(model, decision, context_of(model))
    weight = weight_layer(after, "10").weight
    with torch.no_grad():
        if value:
            weight[0, 0] = value
        else:
            weight.mul_(1.5)
    with pytest.raises(NotCertified, match=message):
        WeightQuantization().verify(model, after, record)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = small_net()
    with torch.no_grad():
        weight_layer(model, "10").weight[0, 0] = float("nan")
    with pytest.raises(PlanInvalid, match="Layer '10' has a weight of magnitude nan"):
        WeightQuantization().apply(model, {"10": QuantizeWeights(bits=4)}, context_of(model))
