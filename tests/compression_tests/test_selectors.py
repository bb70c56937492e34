from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.catalogue import SELECTORS
from compression.coupling import Coupling
from compression.errors import PlanInvalid
from compression.graph import trace
from compression.methods import SELECTOR_NAMES
from compression.models.cifar_resnet import cifar_resnet
from compression.primitives.rankings import Rankings
from compression.selectors.selector import Evidence
from compression.surgery import cuts_of, thin
from compression.survey import survey
from tests.builders import SHAPE, FlattenVgg, MobileNet, seeded
from tests.cifar import MEAN, STD, images, labels, state_dict


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(4, *SHAPE, generator=generator),
            torch.randint(0, 10, (4,), generator=generator),
        )
        for _ in range(count)
    ]


def evidence(count: int = 2) -> Evidence:
    return Evidence(batches=batches(count), calibration=[x for x, _ in batches(count)])


def couplings(model: nn.Module) -> dict[str, Coupling]:
    return {c.name: c for c in trace(model, SHAPE) if not c.is_output}


def test_the_catalogue_is_what_jobs_may_name() -> None:
    assert set(SELECTORS) == set(SELECTOR_NAMES)


@pytest.mark.parametrize("name", list(SELECTORS))
def test_scores_are_finite_repeat_and_leave_the_model_alone(name: str) -> None:
    model = seeded(MobileNet)
    groups = couplings(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first = SELECTORS[name].scores(model, tuple(groups.values()), evidence())
    second = SELECTORS[name].scores(model, tuple(groups.values()), evidence())
    assert set(first) == set(groups)
    for site, scores in first.items():
        assert scores.shape == (groups[site].channels,)
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()
        assert len(set(scores.tolist())) > 1
        assert (scores == second[site]).all()
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("name", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_producers(name: str, order: int) -> None:
    model = seeded(MobileNet)
    scores = SELECTORS[name].scores(model, tuple(couplings(model).values()), Evidence())
    filters = [
        model.get_parameter(f"{layer}.weight").detach().flatten(1)
        for layer in ("stem", "blocks.0.project")
    ]
    expected = torch.cat(filters, 1).norm(order, dim=1)
    assert scores["stem"] == pytest.approx(expected.numpy(), rel=1e-5)


def test_bn_scale_is_the_absolute_gamma_and_falls_back_to_l2() -> None:
    model = seeded(FlattenVgg)
    with torch.no_grad():
        model.get_parameter("features.1.weight")[2] = -7.0
    groups = tuple(couplings(model).values())
    scores = SELECTORS["bn_scale"].scores(model, groups, Evidence())
    gamma = model.get_parameter("features.1.weight").detach().abs().numpy()
    assert scores["features.0"] == pytest.approx(gamma)
    assert scores["features.0"].argmax() == 2
    # `features.4` has no BatchNorm.
    assert (
        scores["features.4"] == SELECTORS["l2"].scores(model, groups, Evidence())["features.4"]
    ).all()


def test_taylor_is_the_mean_square_of_gradient_times_weight() -> None:
    model = seeded(FlattenVgg)
    scores = SELECTORS["taylor"].scores(model, tuple(couplings(model).values()), evidence())
    total = torch.zeros(24)
    for inputs, targets in batches():
        model.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(inputs), targets))
        weight, bias = (model.get_parameter(f"hidden.{n}") for n in ("weight", "bias"))
        assert weight.grad is not None
        assert bias.grad is not None
        total += (weight.grad * weight.detach()).square().sum(1) / 2
        total += (bias.grad * bias.detach()).square() / 2
    assert scores["hidden"] == pytest.approx(total.numpy(), rel=1e-4)


def test_taylor_finds_the_channel_that_does_not_matter() -> None:
    model = seeded(FlattenVgg)
    with torch.no_grad():
        model.get_parameter("classifier.weight")[:, 5] = 0.0
        model.get_parameter("hidden.weight")[5] *= 100.0
    groups = tuple(couplings(model).values())
    scores = SELECTORS["taylor"].scores(model, groups, evidence())["hidden"]
    assert scores[5] == 0.0
    assert SELECTORS["l2"].scores(model, groups, Evidence())["hidden"].argmax() == 5


def test_taylor_without_batches_is_refused() -> None:
    model = seeded(FlattenVgg)
    with pytest.raises(PlanInvalid, match="'taylor' needs labelled batches"):
        SELECTORS["taylor"].scores(model, tuple(couplings(model).values()), Evidence())


def test_equal_scores_keep_the_first_channels() -> None:
    model = seeded(FlattenVgg)
    with torch.no_grad():
        model.get_parameter("hidden.weight").fill_(0.5)
    order = Rankings(couplings(model), SELECTORS).order(model, "l2")["hidden"]
    assert order.tolist() == list(range(24))


@pytest.mark.slow
def test_l2_on_trained_resnet20_beats_scale_by_far(real_data: Path) -> None:
    """Half of the inner channels, BatchNorm recalibrated, no training; 2,000 test images."""
    model = cifar_resnet(20)
    model.load_state_dict(state_dict(real_data, "cifar_resnet20"))
    model.eval()
    x, y = _inputs(images(real_data, "test")[:4000:2]), labels(real_data, "test")[:4000:2]
    calibration = _inputs(images(real_data, "train_0")[:1000])
    sites = {site.name for site in survey(model, (3, 32, 32)).prunable()}
    groups = {c.name: c for c in trace(model, (3, 32, 32)) if c.name in sites}
    rankings = Rankings(groups, SELECTORS)
    top1 = {}
    for selector in ("l2", "bn_scale"):
        kept = {
            site: np.sort(order[: groups[site].channels // 2])
            for site, order in rankings.order(model, selector).items()
        }
        pruned = thin(model, cuts_of(model, groups.values(), kept))
        for module in pruned.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        with torch.no_grad():
            pruned.train()
            for part in torch.split(calibration, 250):
                pruned(part)
            pruned.eval()
            predicted = torch.cat([pruned(part).argmax(1) for part in torch.split(x, 500)])
        top1[selector] = float((predicted.numpy() == y).mean())
    # Measured on 5,000 images: 0.569 and 0.442.
    assert top1["l2"] > 0.53
    assert top1["l2"] - top1["bn_scale"] > 0.06


def _inputs(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
