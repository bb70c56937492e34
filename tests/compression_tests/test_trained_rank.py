from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from compression.decisions import Factorize, FactorizeMethod
from compression.errors import PlanInvalid
from compression.factors import ranks
from compression.primitives.decompositions import compose, decompose, relative_error
from compression.recover.trained_rank import TrainedRank

PLAN = {
    "0": Factorize(method="spatial", rank_ratio=0.5),
    "2": Factorize(method="channel", rank_ratio=0.3),
    "6": Factorize(method="svd", rank_ratio=0.6),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 12, (3, 5), padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def matrix(layer: nn.Module, method: FactorizeMethod) -> torch.Tensor:
    weight = layer.get_parameter("weight").detach().double()
    if method == "spatial":
        n_out, n_in, kh, kw = weight.shape
        return weight.permute(0, 3, 1, 2).reshape(n_out * kw, n_in * kh)
    return weight.flatten(1)


def rank(layer: nn.Module, method: FactorizeMethod) -> int:
    values = torch.linalg.svdvals(matrix(layer, method))
    return int((values > 1e-5 * values[0]).sum())


def planned(model: nn.Sequential, name: str) -> int:
    shape = model.get_submodule(name).get_parameter("weight").shape
    kh, kw = (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
    return ranks(PLAN[name], shape[1], shape[0], (kh, kw))[0]


def train(model: nn.Sequential, hook: TrainedRank, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 4, 9, 9, generator=generator)
    labels = torch.randint(10, (32,), generator=generator)
    losses = []
    hook.start(model, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        hook.gradients(model, step)
        optimizer.step()
        hook.after_step(model, step)
        losses.append(float(loss.detach()))
    hook.finish(model)
    return losses


def test_after_training_the_split_is_lossless_and_something_was_learned() -> None:
    model = network()
    losses = train(model, TrainedRank(PLAN, every=5), 33)
    assert losses[-1] < 0.95 * losses[0]
    for name, decision in PLAN.items():
        layer = model.get_submodule(name)
        found = layer.get_parameter("weight").detach()
        weight = found if found.dim() == 4 else found[:, :, None, None]
        r = planned(model, name)
        assert rank(layer, decision.method) == r
        factors = decompose(decision.method, weight, (r,), generator=torch.Generator())
        composed = compose(decision.method, factors, weight.shape)
        assert relative_error(weight, composed) < 1e-5


def test_ranks_are_cut_every_few_steps_and_only_then() -> None:
    model, hook = network(), TrainedRank(PLAN, every=3)
    hook.start(model, 10)
    for step in range(3):
        for name, decision in PLAN.items():
            assert rank(model.get_submodule(name), decision.method) > planned(model, name), step
        hook.after_step(model, step)
    for name, decision in PLAN.items():
        assert rank(model.get_submodule(name), decision.method) == planned(model, name)


@pytest.mark.parametrize("name", list(PLAN))
def test_the_gradient_gets_the_sub_gradient_of_the_nuclear_norm(name: str) -> None:
    model, hook = network(), TrainedRank({name: PLAN[name]}, nuclear=0.5)
    # The sub-gradient is that of the truncated weight, where both agree.
    hook.finish(model)
    hook.start(model, 1)
    layer = model.get_submodule(name)
    layer.get_parameter("weight").grad = torch.zeros_like(layer.get_parameter("weight"))
    hook.gradients(model, 0)
    found = layer.get_parameter("weight").grad
    assert found is not None
    before = torch.linalg.svdvals(matrix(layer, PLAN[name].method)).sum()
    with torch.no_grad():
        layer.get_parameter("weight").add_(found, alpha=1e-3)
    after = torch.linalg.svdvals(matrix(layer, PLAN[name].method)).sum()
    # d|W|_* / dt along U V^T is |U V^T|^2 = r.
    assert float(after - before) / 1e-3 == pytest.approx(0.5 * planned(model, name), rel=1e-2)


def test_without_a_nuclear_weight_gradients_stay_as_they_are() -> None:
    model, hook = network(), TrainedRank(PLAN, nuclear=0.0)
    hook.start(model, 1)
    hook.gradients(model, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_has_no_matrix_or_no_layer_is_refused() -> None:
    with pytest.raises(PlanInvalid, match="trained rank knows svd, channel, spatial, not cp"):
        TrainedRank({"0": Factorize(method="cp", rank_ratio=0.5)})
    with pytest.raises(PlanInvalid, match="every is 0"):
        TrainedRank(PLAN, every=0)
    with pytest.raises(PlanInvalid, match="'nowhere' is not in the model"):
        TrainedRank({"nowhere": PLAN["0"]}).start(network(), 1)
    with pytest.raises(PlanInvalid, match="'1' is no plain convolution"):
        TrainedRank({"1": PLAN["0"]}).start(network(), 1)
