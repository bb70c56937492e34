"""Opening an ONNX graph in ONNX Runtime on the CPU, and running arrays through it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _native

INPUT = "input"
OUTPUT = "logits"

RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    getattr(_native, name)
    for name in (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NotImplemented",
        "RuntimeException",
    )
)
"""What ONNX Runtime raises; its exception types share no base class but `Exception`."""


def open_session(onnx: bytes, *, threads: int = 1, optimize: bool = True) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU.

    Args:
        onnx: A serialized model without external data.
        threads: Threads inside one operator; more than there are free cores is very slow.
        optimize: Whether the runtime may rewrite the graph; False keeps every node as it is.

    Raises:
        RUNTIME_ERRORS: The runtime cannot load the graph.
    """
    options = session_options(threads=threads)
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def session_options(*, threads: int) -> Any:
    """Return `onnxruntime.SessionOptions` as every session of ours has them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool takes cores from whoever runs next to it, also from a rival being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def run_batches(
    session: Any, inputs: NDArray[np.float32], *, batch: int = 32
) -> NDArray[np.float32]:
    """Return the first output for all inputs, `n x ...`, computed `batch` rows at a time."""
    name = session.get_inputs()[0].name
    chunks = [
        session.run(None, {name: np.ascontiguousarray(inputs[start : start + batch])})[0]
        for start in range(0, len(inputs), batch)
    ]
    return np.concatenate(chunks)
