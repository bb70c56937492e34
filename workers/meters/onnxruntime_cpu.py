"""ONNX Runtime on the CPU, to be timed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compression.onnx_session import open_session, run_batches
from workers.meters import LoadedModel
from workers.meters.pinned import Pinned, only_input, with_batch


class OnnxRuntimeCpu(Pinned):
    """See `workers.meters.Runtime`.

    Intra-op threads as the device says, one inter-op thread, sequential execution, all graph
    optimisations. Spinning is off: a spinning pool takes cores from whoever runs next to it, also
    from the other model of a comparison.
    """

    def build(self, onnx: bytes, batch: int = 1) -> bytes:
        """See `Runtime`: ONNX is what it loads."""
        return onnx

    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        """See `Runtime`."""
        session = open_session(file, threads=self.threads)
        inputs = session.get_inputs()
        only_input([(entry.name, entry.type) for entry in inputs], "tensor(float)")
        # Only the batch is free in exported files; free sizes are names.
        sizes = [size if isinstance(size, int) else 0 for size in inputs[0].shape]
        return _Session(session, self.fixed_input(with_batch(sizes, batch)))


class _Session:
    """One session with its input."""

    def __init__(self, session: Any, data: NDArray[np.float32]) -> None:
        self._session = session
        self._feed = {session.get_inputs()[0].name: data}

    def run(self) -> None:
        """See `LoadedModel`."""
        self._session.run(None, self._feed)

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel`."""
        return run_batches(self._session, inputs)
