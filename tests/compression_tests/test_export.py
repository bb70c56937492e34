"""From a module to the deployed graph."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.export import export_onnx, parity
from compression.models.cifar_resnet import cifar_resnet
from compression.onnx_graph import layer_of, read_graph
from compression.onnx_session import open_session, run_batches
from tests import cifar

SHAPE = (3, 32, 32)


def random_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics of its own: fresh ones would make folding trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(n, generator=generator))
                module.bias.copy_(0.2 * torch.randn(n, generator=generator))
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.2 * torch.randn(n, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(n, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def resnet8() -> nn.Module:
    return random_norms(cifar_resnet(8))


def inputs(rows: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))


def test_graph_equals_module_at_any_batch_size(resnet8: nn.Module) -> None:
    graph = export_onnx(resnet8, SHAPE)
    for rows in (1, 2, 7):
        assert parity(graph, resnet8, inputs(rows)) < 1e-5


def test_interface_is_the_documented_one(resnet8: nn.Module) -> None:
    graph = read_graph(export_onnx(resnet8, SHAPE)).graph
    assert [v.name for v in graph.input] == ["input"]
    assert [v.name for v in graph.output] == ["logits"]
    dims = graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param
    assert [d.dim_value for d in dims[1:]] == list(SHAPE)


def test_norms_and_constants_are_folded(resnet8: nn.Module) -> None:
    graph = read_graph(export_onnx(resnet8, SHAPE)).graph
    ops = {node.op_type for node in graph.node}
    assert not ops & {"BatchNormalization", "Constant", "Shape", "Identity", "Dropout"}


def test_nodes_and_weights_are_named_after_layers(resnet8: nn.Module) -> None:
    graph = read_graph(export_onnx(resnet8, SHAPE)).graph
    weighted = [n.name for n in graph.node if n.op_type in ("Conv", "Gemm")]
    layers = [name for name, m in resnet8.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert weighted == layers
    names = {tensor.name for tensor in graph.initializer}
    assert {f"{layer}.weight" for layer in layers} <= names
    assert "layer2.0/Add" in {node.name for node in graph.node}


def test_layer_used_twice_keeps_its_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(torch.relu(self.conv(x))).mean((2, 3))
            return out

    model = Twice().eval()
    data = export_onnx(model, (3, 8, 8))
    names = [n.name for n in read_graph(data).graph.node if n.op_type == "Conv"]
    assert names == ["conv", "conv@2"]
    assert {layer_of(name) for name in names} == {"conv"}
    assert parity(data, model, inputs(2, (3, 8, 8))) < 1e-5


@pytest.mark.slow
def test_bytes_are_equal_across_calls_and_processes(resnet8: nn.Module) -> None:
    program = (
        "import hashlib, torch; from compression.export import export_onnx;"
        "from compression.models.cifar_resnet import cifar_resnet; torch.manual_seed(7);"
        "print(hashlib.sha256(export_onnx(cifar_resnet(8), (3, 32, 32))).hexdigest())"
    )
    assert export_onnx(resnet8, SHAPE) == export_onnx(resnet8, SHAPE)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    torch.manual_seed(7)
    here = hashlib.sha256(export_onnx(cifar_resnet(8), SHAPE)).hexdigest()
    assert done.stdout.strip() == here


def test_the_callers_module_stays_untouched() -> None:
    model = cifar_resnet(8).train()
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, SHAPE)
    assert model.training
    assert not model.bn1.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_export_warns_of_nothing(resnet8: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(resnet8, SHAPE)


def test_baked_in_batch_size_is_refused() -> None:
    class Baked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = int(x.shape[0])
            out: Tensor = self.linear(x.reshape(rows, 12))
            return out

    with pytest.raises(CompressionError, match=r"batch|run"):
        export_onnx(Baked(), (3, 2, 2))


def test_several_outputs_are_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(CompressionError, match="tuple"):
        export_onnx(Pair(), (3, 2, 2))


@pytest.mark.slow
def test_what_no_exporter_knows_is_refused_with_both_reasons() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.linalg.eigvals(x.mean(1)).real
            return out

    with pytest.raises(CompressionError, match=r"by tracing: .*by torch.export: "):
        export_onnx(Odd(), (3, 4, 4))


def test_bytes_that_are_not_onnx_are_refused() -> None:
    with pytest.raises(CompressionError, match="Not an ONNX model"):
        read_graph(b"\xff" * 40)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision_networks(name: str) -> None:
    import torchvision

    model = random_norms(getattr(torchvision.models, name)(weights=None))
    data = export_onnx(model, (3, 64, 64))
    assert parity(data, model, inputs(3, (3, 64, 64))) < 1e-4
    onnx.checker.check_model(onnx.load_from_string(data))
    domains = {node.domain for node in read_graph(data).graph.node}
    assert domains == {""}


def test_trained_resnet_keeps_its_accuracy(real_data: Path) -> None:
    model = cifar_resnet(20)
    model.load_state_dict(cifar.state_dict(real_data, "cifar_resnet20"))
    model.eval()
    pixels = cifar.images(real_data, "test")[:500].transpose(0, 3, 1, 2) / np.float32(255)
    mean = np.array(cifar.MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(cifar.STD, np.float32).reshape(3, 1, 1)
    x = np.ascontiguousarray((pixels - mean) / std, np.float32)
    data = export_onnx(model, SHAPE)
    assert parity(data, model, torch.from_numpy(x[:64])) < 1e-5
    right = run_batches(open_session(data), x).argmax(1) == cifar.labels(real_data, "test")[:500]
    assert right.mean() > 0.9
