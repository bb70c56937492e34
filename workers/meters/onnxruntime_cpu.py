"""ONNX Runtime on the CPU, to be timed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compression.onnx_session import open_session, run_batches
from workers.meters import LoadedModel
from workers.meters.cores import choose


class OnnxRuntimeCpu:
    """See `workers.meters.Runtime`.

    Intra-op threads as the device says, one inter-op thread, sequential execution, all graph
    optimisations. Spinning is off: a spinning pool takes cores from whoever runs next to it, also
    from the other model of a comparison.
    """

    def __init__(self, threads: int, seed: int) -> None:
        self._threads = threads
        self._seed = seed
        self._cores = choose(threads)
        self._before: set[int] | None = None

    def __enter__(self) -> OnnxRuntimeCpu:
        """Pin the calling thread; the threads that a session starts inherit it."""
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)
        return self

    def __exit__(self, *exception: object) -> None:
        """See `Runtime`."""
        if self._before is not None:
            os.sched_setaffinity(0, self._before)
            self._before = None

    def build(self, onnx: bytes) -> bytes:
        """See `Runtime`: ONNX is what it loads."""
        return onnx

    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        """See `Runtime`."""
        session = open_session(file, threads=self._threads)
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            found = [(entry.name, entry.type) for entry in inputs]
            raise ValueError(f"The ONNX file has inputs {found}; one float32 input is required")
        entry = inputs[0]
        fixed = entry.shape[0]
        if isinstance(fixed, int) and fixed != batch:
            raise ValueError(f"The ONNX file has batch {fixed}; {batch} was asked for")
        # Only the batch is free in exported files.
        shape = [batch, *(size if isinstance(size, int) else 1 for size in entry.shape[1:])]
        rng = np.random.default_rng(self._seed)
        return _Session(session, entry.name, rng.standard_normal(shape, dtype=np.float32))


class _Session:
    """One session with its input."""

    def __init__(self, session: Any, name: str, data: NDArray[np.float32]) -> None:
        self._session = session
        self._feed = {name: data}

    def run(self) -> None:
        """See `LoadedModel`."""
        self._session.run(None, self._feed)

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel`."""
        return run_batches(self._session, inputs)
