"""ONNX Runtime on the CPU: to be timed, and to score a deployed file."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import onnxruntime
from numpy.typing import NDArray

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

    def load(self, onnx: bytes) -> LoadedModel:
        """See `Runtime`."""
        session = _session(onnx, self._threads)
        entry = session.get_inputs()[0]
        # Batch 1; any other dimension is fixed by the export.
        shape = [size if isinstance(size, int) else 1 for size in entry.shape]
        rng = np.random.default_rng(self._seed)
        return _Session(session, entry.name, rng.standard_normal(shape, dtype=np.float32))


class _Session:
    """One session with its input."""

    def __init__(
        self, session: onnxruntime.InferenceSession, name: str, data: NDArray[np.float32]
    ) -> None:
        self._session = session
        self._feed = {name: data}

    def run(self) -> None:
        """See `LoadedModel`."""
        self._session.run(None, self._feed)


def logits_of(onnx: bytes, batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the first output of a file for all inputs, one thread.

    Args:
        onnx: The file.
        batches: `n x C x H x W` float32 each; at least one.

    Returns:
        `sum of n x classes`, float32.

    Raises:
        ValueError: There are no batches, or the model has not exactly one float32 input.
    """
    session = _session(onnx, 1)
    name = session.get_inputs()[0].name
    outputs = [session.run(None, {name: np.ascontiguousarray(batch)})[0] for batch in batches]
    if not outputs:
        raise ValueError("0 batches; at least 1 is required")
    return np.concatenate(outputs)


def _session(onnx: bytes, threads: int) -> onnxruntime.InferenceSession:
    """Load a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Errors only: the optimiser warns about initialisers that it folded away.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        found = [(i.name, i.type) for i in inputs]
        raise ValueError(f"The ONNX file has inputs {found}; one float32 input is required")
    return session
