"""ONNX files become networks that compute the same and can be compressed."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional

from compression.apply import ApplyContext, apply
from compression.certificate import certify
from compression.codegen import generate
from compression.decisions import PruneChannels
from compression.errors import ModelRefused
from compression.export import export_onnx, parity
from compression.models.onnx_import import import_onnx
from compression.plan import Plan
from compression.survey import survey
from tests.builders import PRUNABLE, SHAPE, MobileNet, seeded
from tests.onnx_nodes import (
    FLAT,
    TOLERANCE,
    check_parity,
    i64,
    network,
    node,
    noise,
    random,
    with_constant_nodes,
)

TORCHVISION = (
    "efficientnet_b0",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
)


@pytest.mark.parametrize("name", sorted(PRUNABLE))
def test_small_networks(name: str) -> None:
    model = seeded(PRUNABLE[name])
    for keep_norms in (False, True):
        data = export_onnx(model, SHAPE, keep_norms=keep_norms)
        check_parity(data)
    found = check_parity(with_constant_nodes(data))
    torch.testing.assert_close(found(noise(2)), model(noise(2)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    shape = (3, 64, 64)
    model = seeded(lambda: torchvision.models.get_model(name, num_classes=10))
    data = export_onnx(model, shape)
    found = check_parity(data, shape)
    wanted = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {n for n, m in found.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)} == wanted
    check_parity(with_constant_nodes(data), shape)


def test_functions_of_pytorch() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.norm = nn.GroupNorm(2, 4)
            self.last = nn.LayerNorm(4)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.silu(self.conv(x)) + functional.elu(self.conv(x))
            x = functional.gelu(self.norm(self.up(x)))
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = self.last(x.flatten(2).transpose(1, 2)).mean(1)
            out: Tensor = self.head(functional.leaky_relu(x, 0.2))
            return out

    found = check_parity(export_onnx(seeded(Odd), SHAPE))
    convolutions = [m for m in found.modules() if type(m) is nn.Conv2d]
    assert len(convolutions) == 1, "a layer that is used twice stays one layer"


def test_a_fixed_batch_becomes_free() -> None:
    nodes = [node("Reshape", "x s", "f"), node("Gemm", "f w")]
    weights = [("s", i64([1, FLAT])), ("w", random(FLAT, 4))]
    model = import_onnx(network(nodes, weights, shape=(1, *SHAPE)))
    assert model(noise(3)).shape == (3, 4)
    with pytest.raises(ModelRefused, match=r"'n_Reshape_f' \(Reshape, opset 18\).*cannot become"):
        import_onnx(network(nodes, weights))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_imported_networks_are_compressed(name: str) -> None:
    shape = (3, 32, 32)
    dense = seeded(lambda: torchvision.models.get_model(name, num_classes=10))
    model = import_onnx(export_onnx(dense, shape))
    found, wanted = survey(model, shape), survey(dense, shape)
    assert found.summary["macs"] == wanted.summary["macs"]
    # The file may run a branch before the one that the original runs first, which names the site.
    assert sorted(s.channels for s in found.prunable()) == sorted(
        s.channels for s in wanted.prunable()
    )
    plan = Plan.of(
        {s.name: [PruneChannels(keep_channels=(s.channels + 1) // 2)] for s in found.prunable()}
    )
    applied = apply(plan, ApplyContext.build(model, found, shape))
    certify(model, applied, plan, shape)
    thin = applied.model
    check_parity(export_onnx(thin, shape), shape)
    generate(thin, shape)


def test_an_imported_network_trains_and_is_exported_again() -> None:
    model = import_onnx(export_onnx(seeded(MobileNet), SHAPE)).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = functional.cross_entropy(model(noise(4)), torch.tensor([0, 1, 2, 3]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    model.eval()
    again = export_onnx(model, SHAPE)
    assert parity(again, model, noise(3)) <= TOLERANCE
