"""One measured quantity per file, and the runtimes that time is measured on."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from workers.errors import DeviceUnknown


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEntry:
    """A runtime as it can be spoken of without loading it.

    Attributes:
        where: `module:class` of the `Runtime`.
        module: What must be importable for it to run.
        package: Distribution whose version is stated.
        suffix: Of the file that it loads.
        int8: Whether INT8 files of ours run as integers.
        int4: Whether 4-bit weights run as such.
        sparse: Whether zeros save time.
        batches: Whether more than one input at once can be timed.
        process_of_threads: Whether more than one thread is timed in a process of its own, because
            how the threads wait and where they run is settled once for a process.
    """

    where: str
    module: str
    package: str
    suffix: str = ".onnx"
    int8: bool = True
    int4: bool = False
    sparse: bool = False
    batches: bool = True
    process_of_threads: bool = False

    @property
    def installed(self) -> bool:
        """Whether it can be loaded here."""
        return importlib.util.find_spec(self.module) is not None


RUNTIMES: Mapping[str, RuntimeEntry] = {
    "onnxruntime": RuntimeEntry(
        where="workers.meters.onnxruntime_cpu:OnnxRuntimeCpu",
        module="onnxruntime",
        package="onnxruntime",
    ),
    "openvino": RuntimeEntry(
        where="workers.meters.openvino_cpu:OpenVinoCpu",
        module="openvino",
        package="openvino",
    ),
    "executorch": RuntimeEntry(
        where="workers.meters.executorch_xnnpack:ExecuTorchXnnpack",
        module="executorch",
        package="executorch",
        suffix=".pte",
    ),
    "torch": RuntimeEntry(
        where="workers.meters.torch_eager:TorchEager",
        module="torch",
        package="torch",
        int8=False,
        process_of_threads=True,
    ),
    "torch_compile": RuntimeEntry(
        where="workers.meters.torch_compiled:TorchCompiled",
        module="torch",
        package="torch",
        int8=False,
        process_of_threads=True,
    ),
}
"""By name; loaded when asked for. Adding one is one file and an entry.

`tests/contracts/meter.py` holds the laws.
"""


def runs_int8(name: str) -> bool:
    """Whether INT8 files of ours run on a runtime; one that is not known is trusted to."""
    return name not in RUNTIMES or RUNTIMES[name].int8


class LoadedModel(Protocol):
    """A deployed model in memory with one fixed random input."""

    def run(self) -> None:
        """Run one inference of the fixed input to its end."""
        ...

    def outputs(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return what the model makes of `n x C x H x W` float32 inputs, `n x classes`.

        Any n: runs that are shorter than the batch are filled up and cut.
        """
        ...


class Runtime(Protocol):
    """Loads deployed files the way a device runs them.

    A context manager: while it is entered the calling thread is pinned to as many cores as the
    device has threads. Models are loaded and run by that thread, while it is entered.
    """

    def __enter__(self) -> Runtime:
        """Pin the calling thread."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Give the calling thread the cores that it had."""
        ...

    def build(self, onnx: bytes, batch: int = 1) -> bytes:
        """Return the file that the runtime loads for `batch` inputs at once, made of ONNX bytes.

        For many runtimes that is the ONNX file itself, whatever the batch. May need torch; never
        called on a device of its own.

        Raises:
            FileRefused: The runtime cannot run the model; the message says what.
        """
        ...

    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        """Load what `build` returned, to be run on `batch` inputs at once.

        Raises:
            FileRefused: The model has not exactly one float32 input, or the batch does not fit.
        """
        ...


def open_runtime(name: str, *, threads: int, seed: int) -> Runtime:
    """Return the runtime of a device.

    Args:
        name: Key of `RUNTIMES`.
        threads: Threads of one inference.
        seed: Of the random input.

    Raises:
        DeviceUnknown: No such runtime, it is not installed, or more threads than this process may
            use cores.
    """
    if name not in RUNTIMES:
        raise DeviceUnknown(f"Unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    entry = RUNTIMES[name]
    if not entry.installed:
        raise DeviceUnknown(f"Runtime {name!r} needs the package {entry.package!r} installed")
    module, _, attribute = entry.where.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), attribute)(threads, seed)
    return runtime
