"""Plain source text of a network."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.apply import ApplyContext, apply
from compression.codegen import GeneratedModel, generate
from compression.decisions import PruneChannels
from compression.errors import CompressionError
from compression.models.cifar_resnet import cifar_resnet
from compression.plan import Plan
from compression.survey import survey
from tests.compression_tests.test_export import random_norms

SHAPE = (3, 32, 32)


def rebuild(generated: GeneratedModel) -> nn.Module:
    namespace: dict[str, object] = {}
    exec(compile(generated.source, "model.py", "exec"), namespace)
    model = namespace["build"]()  # type: ignore[operator]
    model.load_state_dict(generated.state, strict=True)
    assert isinstance(model, nn.Module)
    return model


def assert_same_function(
    model: nn.Module, generated: GeneratedModel, shape: tuple[int, int, int]
) -> None:
    rebuilt = rebuild(generated)
    noise = torch.Generator().manual_seed(3)
    for rows in (1, 2, 5):
        x = torch.randn(rows, *shape, generator=noise)
        with torch.no_grad():
            assert torch.equal(rebuilt(x.clone()), model(x))


def assert_plain(source: str) -> None:
    tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
    assert modules <= {"torch", "safetensors", "pathlib", "math"}
    assert max(len(line) for line in source.splitlines()) <= 100


def pruned_resnet(depth: int) -> nn.Module:
    torch.manual_seed(0)
    dense = random_norms(cifar_resnet(depth))
    found = survey(dense, SHAPE)
    plan = Plan.of(
        {
            site.name: [PruneChannels(keep_channels=1 + (7 * i + 3) % (site.channels - 1))]
            for i, site in enumerate(found.sites)
            if site.kind == "channels" and not site.frozen
        }
    )
    return apply(plan, ApplyContext.build(dense, found, SHAPE)).model


def test_pruned_resnet_with_uneven_widths() -> None:
    model = pruned_resnet(20)
    generated = generate(model, SHAPE)
    assert_same_function(model, generated, SHAPE)
    assert_plain(generated.source)
    assert set(generated.state) == set(model.state_dict())
    assert "# layer1.0" in generated.source
    assert "self.layer1[0].conv1" in generated.source


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("mobilenet_v2", 64),
        ("densenet121", 64),
        ("efficientnet_b0", 64),
        ("shufflenet_v2_x0_5", 64),
        ("regnet_y_400mf", 64),
    ],
)
def test_torchvision_networks(name: str, size: int) -> None:
    import torchvision

    model = random_norms(getattr(torchvision.models, name)(weights=None))
    generated = generate(model, (3, size, size))
    assert_same_function(model, generated, (3, size, size))
    assert_plain(generated.source)
    assert set(generated.state) == set(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_bn", "vit_b_16", "googlenet", "convnext_tiny"])
def test_large_torchvision_networks(name: str) -> None:
    import torchvision

    options = {"init_weights": False} if name == "googlenet" else {}
    size = 224 if name == "vit_b_16" else 64
    model = getattr(torchvision.models, name)(weights=None, **options).eval()
    generated = generate(model, (3, size, size))
    assert_plain(generated.source)
    assert set(generated.state) <= set(model.state_dict())
    assert_same_function(model, generated, (3, size, size))


def test_source_is_formatted(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(generate(pruned_resnet(8), SHAPE).source)
    command = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "100", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_source_is_deterministic() -> None:
    assert generate(pruned_resnet(8), SHAPE).source == generate(pruned_resnet(8), SHAPE).source


class Odd(nn.Module):
    """Own parameters, buffers, gaps in numbering, names that are no attributes, in-place sums."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.register_buffer("shift", torch.rand(1, 8, 1, 1))
        self.block = nn.Sequential(nn.Conv2d(3, 8, (3, 1)), nn.Dropout(0.5), nn.PReLU(8))
        self.block.add_module("a-b", nn.GroupNorm(2, 8, eps=1e-3))
        self.unused = nn.Linear(4, 4)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.ModuleDict({"class": nn.Linear(8, 5, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        y = y * self.scale
        y += self.shift
        z = functional.leaky_relu(y, 0.1)
        y = torch.cat([self.pool(y), self.pool(z)], dim=1).chunk(2, dim=1)[0]
        rows, channels = y.shape[0], y.shape[1]
        y = functional.dropout(y, 0.5, self.training).view(rows, channels, -1).mean(-1)
        out: Tensor = self.head["class"](y) ** 2 - 0.5 * y[:, :5]
        return out


def test_odd_module() -> None:
    model = Odd().eval()
    generated = generate(model, (3, 9, 9))
    assert_same_function(model, generated, (3, 9, 9))
    assert_plain(generated.source)
    assert set(model.state_dict()) - set(generated.state) == {"unused.weight", "unused.bias"}


def test_control_flow_on_sizes_goes_through_torch_export() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] != 8:
                raise ValueError("8 rows are expected")
            out: Tensor = self.conv(x).flatten(1)
            return out

    model = Checked().eval()
    generated = generate(model, (3, 8, 8))
    assert "torch.ops.aten.conv2d" in generated.source
    assert_same_function(model, generated, (3, 8, 8))
    assert_plain(generated.source)


def test_control_flow_on_values_is_refused_with_the_reason() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CompressionError, match="cannot be traced"):
        generate(Branch(), (3, 4, 4))


def test_randomness_is_found_out() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(CompressionError, match="another function"):
        generate(Noisy(), (3, 4, 4))


def test_names_cannot_smuggle_code() -> None:
    class Evil(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('x"); raise SystemExit("no") #', nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = getattr(self, 'x"); raise SystemExit("no") #')(x)
            return out

    model = Evil().eval()
    assert_same_function(model, generate(model, (3, 4, 4)), (3, 4, 4))
