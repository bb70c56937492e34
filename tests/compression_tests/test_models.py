"""Architectures by name, weights into them, and every refusal."""

from __future__ import annotations

import copy
import dataclasses
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from safetensors.torch import save
from torch import Tensor, fx, nn

from compression.artifact import Digest, ModelArtifact, Preprocessing
from compression.errors import ModelRefused
from compression.models.cifar_resnet import PaddedShortcut, cifar_resnet
from compression.models.cifar_vgg import cifar_vgg16
from compression.models.digits_cnn import digits_cnn
from compression.models.names import (
    BUILTIN_NAMES,
    TORCHVISION_NAMES,
    architectures,
    check_name,
)
from compression.models.registry import BUILDERS, load_model

RESNET = ModelArtifact(
    weights=Digest("0" * 64),
    format="safetensors",
    architecture="cifar_resnet20",
    input_shape=(3, 32, 32),
    num_classes=10,
)


def saved(state: Mapping[str, Tensor]) -> bytes:
    return save({key: value.contiguous() for key, value in state.items()})


def torch_saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return cifar_resnet(20).state_dict()


def test_names_and_builders_agree() -> None:
    assert set(BUILDERS) == set(BUILTIN_NAMES)
    assert set(TORCHVISION_NAMES) == set(torchvision.models.list_models(torchvision.models))
    for name in (*architectures(), "resnet18", "my.code:build"):
        check_name(name)
    with pytest.raises(ModelRefused, match="cifar_resnet20"):
        check_name("cifar_resnet21")
    with pytest.raises(ModelRefused, match=r"package\.module:builder"):
        check_name("my code:build")


def test_parameter_counts_as_published() -> None:
    # He et al. (2015), table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M.
    counts = {
        depth: sum(p.numel() for p in cifar_resnet(depth).parameters())
        for depth in (20, 32, 44, 56, 110)
    }
    assert counts[20] == 269_722
    assert counts[32] == 464_154
    assert counts[56] == 853_018
    assert round(counts[44] / 1e6, 2) == 0.66
    assert round(counts[110] / 1e6, 1) == 1.7
    with pytest.raises(ValueError, match="depth is 21"):
        cifar_resnet(21)


def test_padded_shortcut_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    out = PaddedShortcut(1, 2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[0, 1], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    assert not out[0, [0, 2, 3]].any()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (cifar_resnet(20, num_classes=7), (3, 32, 32)),
        (cifar_vgg16(num_classes=7), (3, 32, 32)),
        (digits_cnn(num_classes=7), (1, 8, 8)),
    ],
)
def test_built_ins_trace_and_export(model: nn.Module, shape: tuple[int, int, int]) -> None:
    inputs = torch.randn(2, *shape)
    model.eval()
    expected = model(inputs)
    assert expected.shape == (2, 7)
    assert torch.equal(fx.symbolic_trace(model)(inputs), expected)
    program = torch.export.export(model, (inputs,))
    torch.testing.assert_close(program.module()(inputs), expected)


def test_loads_what_was_saved(state: dict[str, Tensor]) -> None:
    model = load_model(RESNET, saved(state))
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_state_dicts_from_the_wild(state: dict[str, Tensor]) -> None:
    artifact = dataclasses.replace(RESNET, format="state_dict")
    prefixed = {f"module.{key}": value for key, value in state.items()}
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    for content in (state, prefixed, {"state_dict": prefixed, "best_prec1": 91.7}, old):
        model = load_model(artifact, torch_saved(content))
        assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    assert load_model(artifact, torch_saved(half)).state_dict()["bn1.bias"].dtype == torch.float32


def changed(state: Mapping[str, Tensor], **changes: Tensor | None) -> bytes:
    """Return the state with entries replaced, added or (None) removed; `__` stands for a dot."""
    table: dict[str, Tensor] = dict(state)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del table[name]
        else:
            table[name] = value
    return saved(table)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"linear__bias": None}, "lacks 'linear.bias'"),
        ({"extra": torch.ones(1)}, "unexpected 'extra'"),
        (
            {"linear__weight": torch.ones(10, 63)},
            r"'linear.weight' has shape \[10, 63\]; the architecture expects \[10, 64\]",
        ),
        (
            {"linear__bias": torch.tensor([float("nan")] * 2 + [0.0] * 8)},
            "'linear.bias' has 2 of 10 values that are NaN",
        ),
        (
            {"linear__bias": torch.full((10,), 1e300, dtype=torch.float64)},
            "'linear.bias' has 10 of 10",
        ),
        ({"linear__bias": torch.ones(10, dtype=torch.int64)}, "'linear.bias' is torch.int64"),
        ({"bn1__running_var": torch.full((16,), -1.0)}, "returns NaN or infinity"),
    ],
)
def test_refused_weights(
    state: dict[str, Tensor], changes: dict[str, Tensor | None], words: str
) -> None:
    with pytest.raises(ModelRefused, match=words):
        load_model(RESNET, changed(state, **changes))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_classes": 9, "options": {"num_classes": 10}}, "10 wide; num_classes is 9"),
        ({"num_classes": 1}, "at least 2"),
        ({"input_shape": (1, 32, 32)}, r"does not accept inputs of shape \[1, 32, 32\]"),
        ({"input_shape": (3, 0, 32)}, "each at least 1"),
        ({"input_shape": (3, 99999, 99999)}, "at most"),
        ({"options": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"architecture": "nothing_like_it"}, "No architecture is named 'nothing_like_it'"),
        ({"architecture": "my.code:build"}, "--code DIR"),
        ({"preprocessing": Preprocessing(mean=(0.1, 0.2))}, "mean has 2 values.*3 channels"),
        ({"preprocessing": Preprocessing(std=(0.0,))}, "greater than 0"),
        ({"preprocessing": Preprocessing(scale=0.0)}, "scale is 0.0"),
    ],
)
def test_refused_declarations(state: dict[str, Tensor], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        load_model(dataclasses.replace(RESNET, **fields), saved(state))


def test_weights_are_required(state: dict[str, Tensor]) -> None:
    with pytest.raises(ModelRefused, match="needs a weights file"):
        load_model(RESNET, None)
    with pytest.raises(ModelRefused, match="declare the format 'safetensors'"):
        load_model(dataclasses.replace(RESNET, format="state_dict"), saved(state))


def test_torchvision_by_either_name() -> None:
    network = torchvision.models.squeezenet1_1(num_classes=5).eval()
    data = saved(network.state_dict())
    for name in ("squeezenet1_1", "torchvision/squeezenet1_1"):
        artifact = dataclasses.replace(
            RESNET, architecture=name, input_shape=(3, 64, 64), num_classes=5
        )
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(load_model(artifact, data)(x), network(x))


CODE = """
import torch
from my_layers_for_tests.blocks import Block

def build(width=4):
    torch.manual_seed(0)
    return torch.nn.Sequential(Block(width), torch.nn.Flatten(), torch.nn.Linear(width * 16, 3))

def broken():
    raise ValueError("no such width")

def wrong():
    return 7
"""
BLOCKS = """
import torch

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, width, 3, padding=1)

    def forward(self, x):
        import my_lazy_sibling_for_tests
        return my_lazy_sibling_for_tests.activate(self.conv(x))
"""


@pytest.fixture
def code_dir(tmp_path: Path) -> str:
    (tmp_path / "my_net_for_tests.py").write_text(CODE)
    (tmp_path / "my_lazy_sibling_for_tests.py").write_text("import torch\nactivate = torch.relu\n")
    (tmp_path / "json.py").write_text("def build():\n    raise SystemExit('shadowed')\n")
    package = tmp_path / "my_layers_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blocks.py").write_text(BLOCKS)
    return str(tmp_path)


@pytest.fixture(autouse=True)
def _forget_user_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without the finder and the modules of an earlier one's folder."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [n for n in sys.modules if "_for_tests" in n]:
        monkeypatch.delitem(sys.modules, name)


def test_own_code(code_dir: str) -> None:
    path_before = list(sys.path)
    own = ModelArtifact(
        weights=None,
        format="python",
        architecture="my_net_for_tests:build",
        options={"width": 2},
        input_shape=(1, 4, 4),
        num_classes=3,
    )
    model = load_model(own, None, code_dir)
    assert model(torch.ones(5, 1, 4, 4)).shape == (5, 3)
    assert sys.path == path_before
    other = copy.deepcopy(model)
    nn.init.ones_(other.get_parameter("0.conv.weight"))
    for data in (saved(other.state_dict()), torch_saved(other.state_dict())):
        loaded = load_model(own, data, code_dir)
        assert torch.equal(loaded.get_parameter("0.conv.weight"), torch.ones(2, 1, 3, 3))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("my_net_for_tests:nothing", {}, "no callable named 'nothing'"),
        ("my_net_for_tests:broken", {}, "ValueError: no such width"),
        ("my_net_for_tests:wrong", {}, "returned int"),
        ("my_net_for_tests:build", {"depth": 2}, "unexpected keyword argument 'depth'"),
        ("not_there_for_tests:build", {}, "No module named 'not_there_for_tests'"),
        ("json:build", {}, "rename yours"),
    ],
)
def test_refused_code(code_dir: str, name: str, options: dict[str, Any], words: str) -> None:
    artifact = ModelArtifact(
        weights=None, format="python", architecture=name, options=options, input_shape=(1, 4, 4)
    )
    with pytest.raises(ModelRefused, match=words):
        load_model(artifact, None, code_dir)


def test_real_checkpoints_load(real_data: Path) -> None:
    path = next((real_data / "checkpoints").glob("cifar10_resnet20-*.th"))
    # These are files from before the zip format: refused as they are, and fine as safetensors.
    with pytest.raises(ModelRefused, match="legacy"):
        load_model(dataclasses.replace(RESNET, format="state_dict"), path.read_bytes())
    content = torch.load(path, map_location="cpu", weights_only=True)
    rewritten = dataclasses.replace(RESNET, format="state_dict")
    model = load_model(rewritten, torch_saved(content))
    key = "module.layer3.2.conv2.weight"
    assert torch.equal(model.state_dict()[key.removeprefix("module.")], content["state_dict"][key])
