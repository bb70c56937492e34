"""The differentiable search of widths and depths: each formula, and the search itself."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.apply import ApplyContext, apply
from compression.artifact import Preprocessing
from compression.backend import Backend
from compression.errors import CompressionError
from compression.methods import Methods, resolve_space
from compression.models.cifar_resnet import cifar_resnet
from compression.plan import Plan
from compression.recover.training import TrainingData
from compression.recover.training_state import Checkpoints, TrainingState
from compression.supernets.gumbel import Pair
from compression.supernets.width_depth import Found, SearchSpace, search_widths
from compression.supernets.width_depth_choices import (
    DepthChoice,
    depth_choices,
    depths,
    plan_of,
    thinned,
    width_choices,
)
from compression.supernets.width_depth_cost import ExpectedMacs, cost_loss
from compression.supernets.width_depth_logits import Logits
from compression.supernets.width_depth_network import Mixture, WidthDepthNetwork
from compression.supernets.width_depth_recipe import SearchRecipe
from compression.survey import survey
from tests.builders import seeded

SHAPE = (3, 8, 8)
ALLOW = ("prune_channels", "drop_block")


@functools.cache
def context() -> ApplyContext:
    model = seeded(lambda: cifar_resnet(20))
    return ApplyContext.build(model, survey(model, SHAPE), SHAPE)


@functools.cache
def search_space(multiple: int = 4) -> SearchSpace:
    known = context()
    methods = Methods(allow=ALLOW, channel_multiple=multiple)
    plans = resolve_space(known.survey.sites, methods, known.survey.costs)
    rankings = known.module.rankings
    return SearchSpace(
        plans=plans,
        costs=known.survey.costs,
        couplings=rankings.couplings,
        order=rankings.order(known.model, "l2"),
        selector="l2",
        widths=width_choices(plans),
        depths=depth_choices(plans, known.model, SHAPE),
    )


def mixture(kept: Mapping[str, int], stays: Mapping[str, int]) -> Mixture:
    """Return the mixture in which every choice is decided."""
    space = search_space()
    widths = {
        c.site: Pair((c.candidates.index(kept.get(c.site, c.candidates[-1])),), torch.ones(1))
        for c in space.widths
    }
    shares = [
        torch.tensor([float(k == stays.get(c.name, c.candidates[-1])) for k in c.candidates])
        for c in space.depths
    ]
    return Mixture(widths, shares)


def network(alignment: Any = "zeros") -> WidthDepthNetwork:
    space = search_space()
    model = copy.deepcopy(context().model)
    return WidthDepthNetwork(
        model, space.couplings, space.order, space.widths, space.depths, alignment
    )


def outputs(module: nn.Module, seed: int = 0) -> Tensor:
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found: Tensor = module(x)
    return found


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(1, (1,)), (3, (1, 2, 3)), (9, (1, 3, 5, 7, 9)), (18, (*range(1, 18, 2), 18))],
)
def test_depths_are_the_papers(blocks: int, expected: tuple[int, ...]) -> None:
    assert depths(blocks) == expected


def test_candidates_are_thinned_evenly_and_keep_both_ends() -> None:
    assert thinned([3, 5]) == (3, 5)
    assert thinned(range(1, 16)) == (1, 3, 5, 7, 9, 11, 13, 15)
    found = thinned(range(8, 65, 4))
    assert (len(found), found[0], found[-1]) == (8, 8, 64)


def test_stages_of_a_residual_network_are_chains() -> None:
    found = {choice.blocks: choice.candidates for choice in search_space().depths}
    assert found == {
        # The first stage keeps a block; where a block changes the resolution, that one stays.
        ("layer1.0", "layer1.1", "layer1.2"): (1, 2, 3),
        ("layer2.1", "layer2.2"): (0, 1, 2),
        ("layer3.1", "layer3.2"): (0, 1, 2),
    }


def test_a_decided_mixture_is_the_network_of_its_plan() -> None:
    space = search_space()
    kept = {c.site: c.candidates[i % len(c.candidates)] for i, c in enumerate(space.widths)}
    stays = {"layer1.0": 2, "layer2.1": 0}
    net = network()
    net.mixture = mixture(kept, stays)
    net.eval()
    dropped = ["layer1.2", "layer2.1", "layer2.2"]
    plan = plan_of(space.plans, kept, dropped, "l2")
    applied = apply(plan, context()).model
    assert torch.allclose(outputs(net), outputs(applied), atol=1e-4, rtol=1e-4)


def test_without_a_mixture_it_is_the_whole_model() -> None:
    net = network().eval()
    assert torch.equal(outputs(net), outputs(context().model))
    net.mixture = mixture({}, {})
    assert torch.allclose(outputs(net), outputs(context().model), atol=1e-5)


@pytest.mark.parametrize("alignment", ["zeros", "interpolate"])
def test_two_widths_are_mixed_in_what_the_consumer_reads(alignment: str) -> None:
    from compression.supernets.channel_interpolation import interpolate_channels

    space, net = search_space(), network(alignment).eval()
    choice = space.widths[0]
    consumer = next(t.layer for t in space.couplings[choice.site].taps if t.side == "in")
    shares = torch.tensor([0.3, 0.7])
    widths = {**mixture({}, {}).widths, choice.site: Pair((0, 2), shares)}
    net.mixture = Mixture(widths, mixture({}, {}).depths)
    small, large = choice.candidates[0], choice.candidates[2]
    read: list[Tensor] = []
    layer = net.model.get_submodule(consumer)
    layer.register_forward_hook(lambda _, args, out: read.extend([args[0], out]))
    outputs(net)
    order = torch.from_numpy(space.order[choice.site].copy())
    features = read[0][:, order]
    first = torch.zeros_like(features)
    first[:, :large] = (
        interpolate_channels(features[:, :small], large)
        if alignment == "interpolate"
        else nn.functional.pad(features[:, :small], (0, 0, 0, 0, 0, large - small))
    )
    second = torch.zeros_like(features)
    second[:, :large] = features[:, :large]
    mixed = torch.empty_like(features)
    mixed[:, order] = 0.3 * first + 0.7 * second
    plain = copy.deepcopy(context().model.get_submodule(consumer))
    assert torch.allclose(read[1], plain(mixed), atol=1e-4)


def test_a_stages_output_is_the_weighted_sum_after_each_depth() -> None:
    net = network().eval()
    whole = mixture({}, {})
    shares = [torch.tensor([0.2, 0.5, 0.3]), *whole.depths[1:]]
    net.mixture = Mixture(whole.widths, shares)
    after: list[Tensor] = []
    dense = copy.deepcopy(context().model)
    for name in ("layer1.0", "layer1.1", "layer1.2"):
        dense.get_submodule(name).register_forward_hook(lambda m, a, out: after.append(out))
    outputs(dense)
    entered: list[Tensor] = []
    net.model.get_submodule("layer2.0").register_forward_pre_hook(
        lambda m, args: entered.append(args[0])
    )
    outputs(net)
    expected = 0.2 * after[0] + 0.5 * after[1] + 0.3 * after[2]
    assert torch.allclose(entered[0], expected, atol=1e-5)


def test_expected_macs_of_a_decided_network_are_exact() -> None:
    space = search_space()
    expected = ExpectedMacs(space.costs, space.depths)
    rng = np.random.default_rng(0)
    for _ in range(5):
        kept = {c.site: int(rng.choice(c.candidates)) for c in space.widths}
        stays = [int(rng.integers(len(c.candidates))) for c in space.depths]
        dropped = [
            b for c, i in zip(space.depths, stays, strict=True) for b in c.blocks[c.candidates[i] :]
        ]
        widths = {site: torch.tensor(float(k), dtype=torch.float64) for site, k in kept.items()}
        shares = [torch.eye(len(c.candidates))[i] for c, i in zip(space.depths, stays, strict=True)]
        plan = plan_of(space.plans, kept, dropped, "l2")
        assert float(expected(widths, shares)) == space.costs.cost(plan).macs


def test_expected_macs_are_the_mean_over_all_networks() -> None:
    """Brute force over two widths and a stage whose layers each read at most one site twice."""
    space = search_space()
    chain = DepthChoice(blocks=("layer1.0", "layer1.1", "layer1.2"), candidates=(1, 2, 3))
    choices = [c for c in space.widths if c.site in ("layer1.1.conv1", "layer2.0.conv1")]
    rng = np.random.default_rng(1)
    probabilities = [rng.dirichlet(np.ones(len(c.candidates))) for c in choices]
    shares = np.array([0.2, 0.3, 0.5])
    mean = 0.0
    picks = [range(len(c.candidates)) for c in choices]
    for *indices, depth in itertools.product(*picks, range(3)):
        kept = {c.site: c.candidates[i] for c, i in zip(choices, indices, strict=True)}
        plan = plan_of(space.plans, kept, chain.blocks[chain.candidates[depth] :], "l2")
        weight = shares[depth] * np.prod(
            [p[i] for p, i in zip(probabilities, indices, strict=True)]
        )
        mean += weight * space.costs.cost(plan).macs
    widths = {
        c.site: torch.tensor(p @ np.array(c.candidates))
        for c, p in zip(choices, probabilities, strict=True)
    }
    found = ExpectedMacs(space.costs, [chain])(widths, [torch.from_numpy(shares)])
    assert float(found) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize(
    ("tolerance", "macs", "sign"),
    [
        ("both", 106.0, 1.0),
        ("both", 105.0, 0.0),
        ("both", 95.0, 0.0),
        ("both", 94.0, -1.0),
        ("below", 101.0, 1.0),
        ("below", 100.0, 0.0),
        # The tolerance is a share of the whole network: 5 % of 200.
        ("below", 90.0, 0.0),
        ("below", 89.0, -1.0),
    ],
)
def test_cost_loss(tolerance: Any, macs: float, sign: float) -> None:
    expected = torch.tensor(50.0, requires_grad=True)
    loss = cost_loss(expected, macs, 100.0, largest=200.0, tolerance=tolerance, t=0.05)
    assert float(loss.detach()) == pytest.approx(sign * np.log(50.0))
    if sign:
        loss.backward()  # type: ignore[no-untyped-call]
        assert expected.grad is not None
        assert float(expected.grad) == pytest.approx(sign / 50.0)


def test_an_unknown_tolerance_is_refused() -> None:
    with pytest.raises(CompressionError, match="both, below"):
        cost_loss(torch.ones(()), 1, 1, largest=1, tolerance="above", t=0.1)  # type: ignore[arg-type]


def data(count: int = 32) -> TrainingData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    plain = Preprocessing(layout="NCHW", scale=255.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    return TrainingData(images, rng.integers(0, 10, count), plain)


def run(
    recipe: SearchRecipe,
    *,
    checkpoints: Checkpoints | None = None,
    state: TrainingState | None = None,
    labelled: bool = True,
) -> tuple[Found, nn.Module]:
    model = copy.deepcopy(context().model)
    given = data() if labelled else dataclasses.replace(data(), labels=None)
    found = search_widths(
        model,
        search_space(),
        given,
        recipe,
        teacher=copy.deepcopy(context().model),
        generator=torch.Generator().manual_seed(5),
        backend=Backend(),
        progress=lambda row: None,
        breathe=lambda: None,
        checkpoints=checkpoints,
        state=state,
    )
    return found, model


def recipe(**changes: Any) -> SearchRecipe:
    dense = search_space().costs.cost(Plan()).macs
    settings = {"macs": 0.5 * dense, "steps": 6, "batch_size": 8, "choice_rate": 0.1}
    return SearchRecipe(**{**settings, **changes})


def test_an_interrupted_search_goes_on_bit_by_bit() -> None:
    kept: list[bytes] = []
    whole, model = run(
        recipe(), checkpoints=Checkpoints(every_steps=4, keep=lambda s: kept.append(s.to_bytes()))
    )
    again, other = run(recipe(), state=TrainingState.from_bytes(kept[0]))
    assert whole == again
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_state_of_another_search_is_refused() -> None:
    kept: list[TrainingState] = []
    run(recipe(steps=2), checkpoints=Checkpoints(every_steps=1, keep=kept.append))
    with pytest.raises(CompressionError, match="steps"):
        run(recipe(steps=3), state=kept[0])


def test_the_cost_loss_leads_to_the_target() -> None:
    # Nothing but the cost: with a rate as high as this the target is met within some steps.
    settings = {"steps": 40, "batch_size": 2, "cost_weight": 100.0, "choice_rate": 0.05}
    wanted = recipe(**settings)
    found, model = run(wanted)
    assert 0.8 * wanted.macs < found.macs < 1.2 * wanted.macs
    assert search_space().plans.contains(found.plan)
    assert search_space().plans.contains(found.expected_plan)
    assert found.macs == search_space().costs.cost(found.plan).macs
    assert not model.training
    assert len(found.log) == 2
    assert 0 < found.discrepancy <= 1
    for pairs in (*found.widths.values(), *found.depths.values()):
        assert sum(p for _, p in pairs) == pytest.approx(1.0)


def test_flat_probabilities_mean_a_width_between_those_that_chance_decides() -> None:
    space = search_space()
    wide, long = space.widths[0], space.depths[0]
    first = torch.zeros(len(wide.candidates))
    first[0] = first[-1] = 5.0
    first[-1] += 0.01
    logits = Logits(
        (wide,), (long,), (first,), (torch.tensor([1.0, *[0.0] * (len(long.candidates) - 1)]),)
    )
    kept, dropped = logits.decided()
    assert kept == {wide.site: wide.candidates[-1]}
    assert dropped == list(long.blocks[long.candidates[0] :])
    mean, fewer = logits.expected()
    share = torch.softmax(first, 0) @ torch.tensor(wide.candidates, dtype=torch.float32)
    assert mean[wide.site] == pytest.approx(float(share))
    plan = plan_of(space.plans, mean, fewer, "l2")
    middle = plan.prune_channels()[wide.site].keep_channels
    assert abs(middle - mean[wide.site]) <= (wide.candidates[1] - wide.candidates[0]) / 2
    assert set(fewer) < set(dropped)


def test_choices_wait_while_weights_get_used_to_them() -> None:
    states: list[TrainingState] = []
    run(
        recipe(steps=4, warm_up=0.5),
        checkpoints=Checkpoints(every_steps=1, keep=states.append),
    )
    logits = [torch.cat(list(state.part("logits").values())) for state in states]
    weights = [next(iter(state.part("model").values())) for state in states]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[1], logits[2])
    assert not torch.equal(weights[0], weights[1])


def test_it_learns_without_labels() -> None:
    found, _ = run(recipe(steps=1), labelled=False)
    assert found.log[-1].loss > 0


@pytest.mark.parametrize("changes", [{"macs": 0}, {"steps": 0}, {"tolerance": "x"},
                                     {"cooling": "x"}, {"alignment": "x"},
                                     {"warm_up": 1.0}])  # fmt: skip
def test_a_recipe_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CompressionError, match=next(iter(changes))):
        recipe(**changes)
