"""One measured quantity per file, and the runtimes that time is measured on."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from workers.errors import DeviceUnknown

RUNTIMES: Mapping[str, str] = {
    "onnxruntime": "workers.meters.onnxruntime_cpu:OnnxRuntimeCpu",
}
"""Name to `module:class` of a `Runtime`; loaded when asked for. Adding one is one file and a line.

`tests/contracts/meter.py` holds the laws.
"""


class LoadedModel(Protocol):
    """A deployed model in memory with one fixed random input of batch 1."""

    def run(self) -> None:
        """Run one inference to its end."""
        ...


class Runtime(Protocol):
    """Loads ONNX files the way a device runs them.

    A context manager: while it is entered the calling thread is pinned to as many cores as the
    device has threads. Models are loaded and run by that thread, while it is entered.
    """

    def __enter__(self) -> Runtime:
        """Pin the calling thread."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Give the calling thread the cores that it had."""
        ...

    def load(self, onnx: bytes) -> LoadedModel:
        """Load a model.

        Raises:
            ValueError: The model has not exactly one float32 input.
        """
        ...


def open_runtime(name: str, *, threads: int, seed: int) -> Runtime:
    """Return the runtime of a device.

    Args:
        name: Key of `RUNTIMES`.
        threads: Threads of one inference.
        seed: Of the random input.

    Raises:
        DeviceUnknown: No such runtime, or more threads than this process may use cores.
    """
    if name not in RUNTIMES:
        raise DeviceUnknown(f"Unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    module, _, attribute = RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), attribute)(threads, seed)
    return runtime
