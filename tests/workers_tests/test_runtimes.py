"""Every runtime under the one contract; what is not installed is skipped and says so."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compression.decisions import Quantize
from compression.export import export_onnx
from compression.models.cifar_resnet import cifar_resnet
from compression.onnx_session import open_session, run_batches
from compression.primitives.quantize import quantize_onnx
from tests.contracts.meter import RuntimeContract
from tests.onnx_files import conv_net
from workers import meters
from workers.errors import DeviceUnknown
from workers.meters import RUNTIMES, open_runtime
from workers.meters.integer_network import import_integers
from workers.meters.pinned import through_batches
from workers.meters.torch_compiled import COMPILERS


class TestOnnxRuntimeCpu(RuntimeContract):
    name = "onnxruntime"


class TestOpenVinoCpu(RuntimeContract):
    name = "openvino"


class TestTorchEager(RuntimeContract):
    name = "torch"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler is installed")
class TestTorchCompiled(RuntimeContract):
    name = "torch_compile"


@pytest.mark.slow
class TestExecuTorchXnnpack(RuntimeContract):
    name = "executorch"


def test_without_a_compiler_the_compiled_runtime_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeviceUnknown, match=r"C\+\+ compiler"):
        open_runtime("torch_compile", threads=1, seed=0)


def test_openvino_reports_nothing_to_its_maker() -> None:
    pytest.importorskip("openvino", reason="the package openvino is not installed")
    code = (
        "import sys; from workers.meters.openvino_cpu import openvino; openvino();"
        "assert sys.modules.get('openvino_telemetry') is None, 'telemetry was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(RUNTIMES["openvino"], module="not_there", package="not-there")
    monkeypatch.setattr(meters, "RUNTIMES", {"openvino": entry})
    with pytest.raises(DeviceUnknown, match="needs the package 'not-there'"):
        open_runtime("openvino", threads=1, seed=0)


def test_openvino_computes_float_files_in_float32() -> None:
    # On a machine with AMX tiles the plugin's default is bfloat16, off by 1e-2.
    pytest.importorskip("openvino", reason="the package openvino is not installed")
    from workers.meters.openvino_cpu import compile_file

    compiled = compile_file(conv_net(8), 1, 1)
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert not compiled.get_property("ENABLE_CPU_PINNING")


def residual_files() -> tuple[bytes, bytes]:
    """Return a ResNet with shortcuts that slice and pad, as float and INT8 files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        onnx = export_onnx(cifar_resnet(8).eval(), (3, 32, 32))
    inputs = np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)
    return onnx, quantize_onnx(onnx, inputs, Quantize())


def test_integers_read_into_pytorch_are_those_of_onnx_runtime() -> None:
    float_file, file = residual_files()
    inputs = np.random.default_rng(1).standard_normal((6, 3, 32, 32), dtype=np.float32)
    expected = run_batches(open_session(file), inputs)
    network = import_integers(file)
    with torch.inference_mode():
        found = network(torch.from_numpy(inputs)).numpy()
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 0.03 * scale
    # Not the float network by another way.
    assert np.abs(run_batches(open_session(float_file), inputs) - expected).max() > 1e-4 * scale
    # Every convolution has its integers; only the last layer, whose sums stay floats, has not.
    layers = [m for m in network.graph.nodes if m.op == "call_module"]
    kinds = {type(network.get_submodule(str(node.target))) for node in layers}
    assert torch.nn.Conv2d not in kinds
    integers = [b for name, b in network.named_buffers() if name.endswith("_integers")]
    assert len(integers) == 7
    assert {b.dtype for b in integers} == {torch.int8}


@pytest.mark.slow
def test_executorch_runs_residual_networks_in_integers() -> None:
    pytest.importorskip("executorch", reason="the package executorch is not installed")
    float_file, file = residual_files()
    inputs = np.random.default_rng(1).standard_normal((4, 3, 32, 32), dtype=np.float32)
    expected = run_batches(open_session(file), inputs)
    with open_runtime("executorch", threads=1, seed=0) as runtime:
        built = runtime.build(file, 2)
        found = runtime.load(built, 2).outputs(inputs)
        assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()
        assert len(built) < 0.5 * len(runtime.build(float_file, 2))


def test_rows_are_filled_up_to_the_batch_and_cut() -> None:
    seen: list[int] = []

    def forward(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(len(rows))
        return rows[:, :1]

    inputs = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(through_batches(forward, inputs, 2), inputs[:, :1])
    assert seen == [2, 2, 2]
