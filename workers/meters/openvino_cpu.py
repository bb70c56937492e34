"""OpenVINO on the CPU, to be timed; it reads ONNX files, INT8 ones as integers."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.errors import FileRefused
from workers.meters import LoadedModel
from workers.meters.pinned import Pinned, only_input, through_batches, with_batch


class OpenVinoCpu(Pinned):
    """See `workers.meters.Runtime`.

    One stream, the latency hint, threads as the device says. Float files are computed in float32:
    where the processor has AMX tiles the plugin's default is bfloat16, which is another network.
    The plugin's own pinning is off because the calling thread is pinned, and its threads inherit
    that. The batch is fixed when the model is compiled, as one would deploy it.
    """

    def build(self, onnx: bytes, batch: int = 1) -> bytes:
        """See `Runtime`: ONNX is what it loads."""
        return onnx

    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        """See `Runtime`."""
        compiled = compile_file(file, batch, self.threads)
        return _Compiled(compiled, self.fixed_input(compiled.input(0).shape))


@functools.cache
def openvino() -> Any:
    """Return the library, which is kept from reporting its use to its maker.

    Importing it creates a client identity in the home folder and may send an event. The package
    that does so is optional: without it OpenVINO takes a stub.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def compile_file(file: bytes, batch: int, threads: int, *, profile: bool = False) -> Any:
    """Return the compiled model of an ONNX file for exactly this many inputs at once.

    Args:
        file: ONNX bytes.
        batch: Inputs of one inference.
        threads: Threads of one inference.
        profile: Whether every operator is timed, which costs time itself.

    Raises:
        FileRefused: OpenVINO cannot read or compile the file, it has not exactly one float32 input,
            or it fixes another batch.
    """
    core = openvino().Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    }
    try:
        model = core.read_model(file)
        only_input([(i.any_name, i.element_type.get_type_name()) for i in model.inputs], "f32")
        sizes = [
            0 if size.is_dynamic else size.get_length() for size in model.input(0).partial_shape
        ]
        model.reshape(list(with_batch(sizes, batch)))
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileRefused(f"OpenVINO cannot run the file: {reason}") from error


class _Compiled:
    """One inference request with its input; the plugin reads it where it lies."""

    def __init__(self, compiled: Any, data: NDArray[np.float32]) -> None:
        self._request = compiled.create_infer_request()
        self._data = data
        self._request.set_input_tensor(openvino().Tensor(data, shared_memory=True))

    def run(self) -> None:
        """See `LoadedModel`."""
        self._request.infer()

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel`."""
        kept = self._data.copy()

        def forward(rows: NDArray[np.float32]) -> Any:
            self._data[:] = rows
            self._request.infer()
            return self._request.get_output_tensor(0).data

        try:
            return through_batches(forward, inputs, len(self._data))
        finally:
            self._data[:] = kept
