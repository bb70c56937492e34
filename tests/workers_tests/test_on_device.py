"""The deployed file on other runtimes: compared, refused or scored; and layers' times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compression.decisions import Quantize
from compression.errors import NotCertified
from compression.onnx_graph import LAYER_OPS, layer_of, read_graph
from compression.primitives.quantize import quantize_onnx
from search.device import LOCAL_DEVICES, DeviceSpec, local_device
from search.objective import Constraint
from search.trial import Fidelity
from tests.onnx_files import conv_net
from tests.workers_tests.small_job import SMALL_JOB, context_in
from workers import meters, on_device
from workers.context import JobContext
from workers.deploy import activations, fall_back_device
from workers.errors import DeviceUnknown
from workers.meters import RUNTIMES, LoadedModel, RuntimeEntry
from workers.meters.layer_profile import layer_profile
from workers.meters.onnxruntime_cpu import OnnxRuntimeCpu
from workers.on_device import check_on_device, outputs_on, runtimes_to_check


class _Liar:
    """A model whose last outputs are handed out in another order."""

    def __init__(self, model: LoadedModel, shift: int) -> None:
        self._model = model
        self._shift = shift

    def run(self) -> None:
        self._model.run()

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.roll(self._model.outputs(inputs), self._shift, axis=1)


class LyingRuntime(OnnxRuntimeCpu):
    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        return _Liar(super().load(file, batch), 1)


class _Blurred(_Liar):
    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.outputs(inputs) * np.float32(1.01)


class BlurringRuntime(OnnxRuntimeCpu):
    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        return _Blurred(super().load(file, batch), 0)


def bound(device: str) -> Constraint:
    return Constraint(metric="latency_ms", at_most=1.0, device=device, statistic="p50")


def timed_on(context: JobContext, *names: str) -> JobContext:
    """Give the job bounds on devices of these names."""
    devices = [device for name in names if (device := local_device(name)) is not None]
    context.spec = dataclasses.replace(
        context.spec,
        devices=(*LOCAL_DEVICES, *devices),
        constraints=tuple(bound(device.name) for device in devices),
    )
    return context


def lying(name: str) -> Mapping[str, RuntimeEntry]:
    entry = RuntimeEntry(where=f"{__name__}:{name}", module="onnxruntime", package="onnxruntime")
    return {**RUNTIMES, "liar": entry}


TORCH = DeviceSpec(name="local/torch", runtime="torch")
LIAR = DeviceSpec(name="local/liar", runtime="liar")


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    return context_in(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("local/openvino-b2", marks=pytest.mark.skipif(
            not RUNTIMES["openvino"].installed, reason="the package openvino is not installed"
        )),
        "local/torch",
    ],
)  # fmt: skip
def test_a_float_file_is_compared_and_scored_on_another_runtime(
    context: JobContext, name: str
) -> None:
    (device,) = runtimes_to_check(timed_on(context, name))
    found = check_on_device(device, context.dense_onnx, context, integers=False)
    assert (found.device, found.runtime) == (name, device.runtime)
    assert found.agreement == 1.0
    assert found.difference < 1e-4
    scores = {reading.metric: reading for reading in found.readings}
    assert set(scores) == {"top1", "top5", "agreement"}
    assert scores["agreement"].value > 0.99
    assert {reading.split for reading in found.readings} == {"test"}
    held_out, _ = context.part(Fidelity.CONFIRMED)
    assert scores["top1"].n == len(held_out)


def test_int8_files_are_held_to_their_decisions(context: JobContext) -> None:
    pytest.importorskip("openvino", reason="the package openvino is not installed")
    file = quantize_onnx(context.dense_onnx, activations(context), Quantize())
    (device,) = runtimes_to_check(timed_on(context, "local/openvino"))
    found = check_on_device(device, file, context, integers=True)
    assert found.agreement >= on_device.INT8_AGREEMENT


def test_a_runtime_that_decides_otherwise_is_named_with_the_limit(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "RUNTIMES", lying("LyingRuntime"))
    with pytest.raises(NotCertified, match=r"On local/liar .* 99% is required"):
        check_on_device(LIAR, context.dense_onnx, context, integers=False)
    with pytest.raises(NotCertified, match=r"90% is required"):
        check_on_device(LIAR, context.dense_onnx, context, integers=True)


def test_a_runtime_of_another_precision_is_refused_float_files_only(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "RUNTIMES", lying("BlurringRuntime"))
    with pytest.raises(NotCertified, match=r"On local/liar .* 1e-03 is allowed"):
        check_on_device(LIAR, context.dense_onnx, context, integers=False)
    assert check_on_device(LIAR, context.dense_onnx, context, integers=True).agreement == 1.0


def test_every_other_runtime_is_checked_once(context: JobContext) -> None:
    names = ("local/onnxruntime-2t", "local/torch", "local/torch-2t", "local/torch-b4")
    checked = runtimes_to_check(timed_on(context, *names))
    assert [(device.name, device.threads) for device in checked] == [
        ("local/torch", 1),
        ("local/torch-b4", 1),
    ]
    assert runtimes_to_check(timed_on(context)) == []


def test_outputs_do_not_depend_on_the_batch(context: JobContext) -> None:
    images, _ = context.part(Fidelity.PROXY)
    one, many = (
        outputs_on(dataclasses.replace(TORCH, batch=batch), context.dense_onnx, context, images)[0]
        for batch in (1, 7)
    )
    np.testing.assert_allclose(one, many, atol=1e-4)


def test_the_fall_back_is_timed_where_the_job_asks(context: JobContext) -> None:
    assert fall_back_device(timed_on(context)) == LOCAL_DEVICES[0]
    assert fall_back_device(timed_on(context, "local/openvino-2t")).name == "local/openvino-2t"
    # INT8 files do not run on PyTorch.
    chosen = fall_back_device(timed_on(context, "local/torch", "local/openvino"))
    assert chosen.name == "local/openvino"
    assert fall_back_device(timed_on(context, "local/torch")) == LOCAL_DEVICES[0]


@pytest.mark.parametrize("name", ["local/onnxruntime-b2", "local/openvino"])
@pytest.mark.parametrize("integers", [False, True])
def test_every_layer_has_its_time(context: JobContext, name: str, integers: bool) -> None:
    device = local_device(name)
    assert device is not None
    if not RUNTIMES[device.runtime].installed:
        pytest.skip(f"the package {RUNTIMES[device.runtime].package} is not installed")
    file = context.dense_onnx
    if integers:
        file = quantize_onnx(file, activations(context), Quantize())
    rows = layer_profile(file, device, seed=0)
    times = {row.name: row.median_ms for row in rows}
    layers = {layer_of(n.name) for n in read_graph(file).graph.node if n.op_type in LAYER_OPS}
    assert layers <= set(times)
    assert len(times) == len(rows)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert [row.median_ms for row in rows] == sorted(times.values(), reverse=True)
    assert all(row.op for row in rows)


def test_runtimes_without_counters_say_so() -> None:
    device = local_device("local/torch")
    assert device is not None
    with pytest.raises(DeviceUnknown, match="no times by layer; onnxruntime, openvino have"):
        layer_profile(conv_net(), device, seed=0)


def test_the_job_of_these_tests_names_no_device() -> None:
    assert not SMALL_JOB.constraints
