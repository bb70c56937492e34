"""PyTorch, operator by operator, to be timed: what a user has before anything is deployed."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto

from compression.errors import ModelRefused
from compression.models.onnx_import import import_onnx
from workers.errors import FileRefused
from workers.meters import LoadedModel
from workers.meters.pinned import Pinned, only_input, through_batches, with_batch

QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class TorchEager(Pinned):
    """See `workers.meters.Runtime`.

    The network is the ONNX file's, read back into plain layers: BatchNorm is folded as in every
    other runtime. `torch.set_num_threads` holds for the whole process and is given back. OpenMP's
    pool of threads keeps the cores that this thread had when it started them, and spins or sleeps
    as the process was told at its start: more than one thread is timed in a process of its own
    (`workers.meters.fresh_process`).
    """

    def __init__(self, threads: int, seed: int) -> None:
        super().__init__(threads, seed)
        self._threads_before: int | None = None

    def __enter__(self) -> Self:
        """Pin the calling thread and set torch's threads."""
        super().__enter__()
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        return self

    def __exit__(self, *exception: object) -> None:
        """See `Pinned`."""
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        super().__exit__(*exception)

    def build(self, onnx: bytes, batch: int = 1) -> bytes:
        """See `Runtime`: ONNX is what it loads."""
        module_of(onnx, batch)
        return onnx

    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        """See `Runtime`."""
        data = torch.from_numpy(self.fixed_input(input_shape(file, batch)))
        return LoadedModule(module_of(file, batch), data)


def module_of(file: bytes, batch: int) -> torch.nn.Module:
    """Return the network of a float ONNX file as a module of plain layers, in eval mode.

    Raises:
        FileRefused: The file computes in integers, or has an operator that is not read.
    """
    input_shape(file, batch)
    if is_quantized(file):
        raise FileRefused("The file computes in INT8; on PyTorch only float files run")
    try:
        return import_onnx(file)
    except ModelRefused as error:
        raise FileRefused(f"PyTorch cannot run the file: {error}") from error


def input_shape(file: bytes, batch: int) -> tuple[int, ...]:
    """Return the shape of an ONNX file's input with the batch filled in.

    Raises:
        FileRefused: The file has not exactly one float32 input, or it fixes another batch.
    """
    try:
        graph = onnx.load_model_from_string(file).graph
    except DecodeError as error:
        raise FileRefused(f"Not an ONNX file ({len(file)} bytes)") from error
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    kind_name = TensorProto.DataType.Name
    only_input([(v.name, kind_name(v.type.tensor_type.elem_type)) for v in inputs], "FLOAT")
    sizes = [size.dim_value for size in inputs[0].type.tensor_type.shape.dim]
    return with_batch(sizes, batch)


def is_quantized(file: bytes) -> bool:
    """Whether an ONNX file computes in integers (QDQ form)."""
    return any(
        node.op_type in QUANTIZED_OPS for node in onnx.load_model_from_string(file).graph.node
    )


class LoadedModule:
    """One module with its input."""

    def __init__(self, forward: Any, data: torch.Tensor) -> None:
        self._forward = forward
        self._data = data

    def run(self) -> None:
        """See `LoadedModel`."""
        with torch.inference_mode():
            self._forward(self._data)

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel`."""
        with torch.inference_mode():
            return through_batches(
                lambda rows: self._forward(torch.from_numpy(rows)).numpy(), inputs, len(self._data)
            )
