"""ExecuTorch with its XNNPACK delegate, to be timed: what phones and boards run."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from compression.errors import ModelRefused
from workers.errors import FileRefused
from workers.meters import LoadedModel
from workers.meters.pinned import Pinned, through_batches, with_batch

KEPT_FILES = 4
"""Built files that are kept: a build takes seconds, and the baseline's is wanted at every trial."""


class ExecuTorchXnnpack(Pinned):
    """See `workers.meters.Runtime`.

    INT8 files keep their integers and scales (`workers.meters.integer_network`). A `.pte` file
    holds for one batch. XNNPACK's pool of threads is one for the process: it is started anew on
    entering, so that its threads have the device's number and its cores. Models loaded before must
    not be run afterwards.
    """

    def __enter__(self) -> Self:
        """Pin the calling thread and start the pool."""
        super().__enter__()
        with _quiet():
            from executorch.extension.pybindings import portable_lib

            portable_lib._unsafe_reset_threadpool(self.threads)
        return self

    def build(self, onnx: bytes, batch: int = 1) -> bytes:
        """See `Runtime`: a `.pte` file, made by `torch.export`."""
        return _build(onnx, batch)

    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        """See `Runtime`."""
        from executorch.runtime import Runtime

        with _quiet():
            method = Runtime.get().load_program(file).load_method("forward")
        if method is None:
            raise FileRefused("The .pte file has no method 'forward'")
        entry = method.metadata.input_tensor_meta(0)
        return _Method(method, file, self.fixed_input(with_batch(entry.sizes(), batch)))


@functools.lru_cache(maxsize=KEPT_FILES)
def _build(onnx: bytes, batch: int) -> bytes:
    # Loading and running needs none of the exporter.
    from workers.meters.integer_network import import_integers
    from workers.meters.torch_eager import input_shape, is_quantized, module_of

    shape = input_shape(onnx, batch)
    try:
        module = import_integers(onnx) if is_quantized(onnx) else module_of(onnx, batch)
    except (ModelRefused, ValueError) as error:
        raise FileRefused(f"ExecuTorch cannot run the file: {error}") from error
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            program = torch.export.export(module, (torch.zeros(shape),))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
        except Exception as error:  # its passes raise nothing more special
            reason = str(error).strip().split("\n", 1)[0]
            raise FileRefused(f"ExecuTorch cannot export the file: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings about its own insides to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Method:
    """One loaded method with its input."""

    def __init__(self, method: Any, file: bytes, data: NDArray[np.float32]) -> None:
        self._method = method
        # The program reads its weights where they lie.
        self._file = file
        self._inputs = [torch.from_numpy(data)]

    def run(self) -> None:
        """See `LoadedModel`."""
        self._method.execute(self._inputs)

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel`."""
        return through_batches(
            lambda rows: self._method.execute([torch.from_numpy(rows)])[0].numpy(),
            inputs,
            len(self._inputs[0]),
        )
