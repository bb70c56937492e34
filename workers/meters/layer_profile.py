"""Where the time of one inference goes, layer by layer, as a runtime's own counters see it.

Counting costs time itself and fused operators count for the first of them: good for a comparison
of layers, not for the time of the whole model, which is the stopwatch's to say.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compression.onnx_graph import LAYER_OPS, layer_of, read_graph
from search.device import DeviceSpec
from workers.errors import DeviceUnknown
from workers.meters import open_runtime
from workers.meters.pinned import Pinned

WARM_UP_RUNS = 5
RUNS = 30

COMPILATIONS = 5
"""How often OpenVINO compiles the model for one profile."""

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")

# What runtimes append to the names of nodes that they rewrite.
_APPENDED = re.compile(
    r"(_kernel_time|_nchwc|_token_\d+|/duplicated|/WithoutBiases|/Dequantization\w+)+$"
)
_CONVERSION = re.compile(r"(\.q|\.dq)$")

Sums = dict[tuple[str, str], float]
"""Milliseconds of all runs, by operator and its kind."""

Events = Mapping[str, tuple[str, NDArray[np.float64]]]
"""By operator: its kind, and its milliseconds in each run."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """What one layer, or what lies between layers, takes of an inference.

    Attributes:
        name: Dotted path of the layer; of other operators the scope that they run in.
        op: Kinds of operators that ran, as the runtime calls them, most time first.
        median_ms: Of one inference, all calls of the layer together.
        share: Of the sum over all layers.
    """

    name: str
    op: str
    median_ms: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return dataclasses.asdict(self)


def can_profile(device: DeviceSpec) -> bool:
    """Whether the device's runtime counts time by layer, and runs here."""
    return device.place == "local" and device.runtime in _COUNTERS


def layer_profile(file: bytes, device: DeviceSpec, *, seed: int) -> tuple[LayerTime, ...]:
    """Return the time of every layer of an ONNX file on a device, most time first.

    The node must be quiet. Conversions to and from integers count for the layer whose values they
    convert; an activation that follows a layer counts for it.

    Args:
        file: ONNX bytes, named as `compression.onnx_graph` says.
        device: Runtime, threads and batch.
        seed: Of the random input.

    Raises:
        DeviceUnknown: The runtime has no counters by layer (`can_profile`).
        FileRefused: The runtime cannot run the file.
    """
    if not can_profile(device):
        known = ", ".join(_COUNTERS)
        raise DeviceUnknown(f"Runtime {device.runtime!r} has no times by layer; {known} have")
    with open_runtime(device.runtime, threads=device.threads, seed=seed) as runtime:
        assert isinstance(runtime, Pinned)
        events = _COUNTERS[device.runtime](file, device, runtime)
    return _by_layer(events, _owners(read_graph(file)))


def _by_layer(events: Events, owners: Mapping[str, str]) -> tuple[LayerTime, ...]:
    times: dict[str, list[tuple[str, NDArray[np.float64]]]] = {}
    for event, (op, ms) in events.items():
        name = _CONVERSION.sub("", _APPENDED.sub("", event))
        times.setdefault(owners.get(name, layer_of(name)), []).append((op, ms))
    found = {name: float(np.median(sum(ms for _, ms in rows))) for name, rows in times.items()}
    total = sum(found.values()) or 1.0
    rows = []
    for name, median_ms in found.items():
        kinds = sorted(times[name], key=lambda row: -float(np.median(row[1])))
        op = " + ".join(dict.fromkeys(kind for kind, _ in kinds))
        rows.append(LayerTime(name=name, op=op, median_ms=median_ms, share=median_ms / total))
    return tuple(sorted(rows, key=lambda row: -row.median_ms))


def _owners(model: onnx.ModelProto) -> dict[str, str]:
    """Return which layer the name of a node or a value counts for."""
    producers = {output: node for node in model.graph.node for output in node.output}

    def behind_conversions(value: str) -> onnx.NodeProto | None:
        node = producers.get(value)
        while node is not None and node.op_type in CONVERSIONS:
            node = producers.get(node.input[0])
        return node

    owners: dict[str, str] = {}
    for node in model.graph.node:
        source = behind_conversions(node.input[0]) if node.input else None
        follows = node.op_type in ("Relu", "Clip") and source is not None
        owner = source if follows and source is not None else node
        if owner.op_type not in LAYER_OPS:
            continue
        for name in (node.name, *node.output):
            owners[name] = layer_of(owner.name or owner.output[0])
        for value in node.input:
            if value == model.graph.input[0].name:
                owners.setdefault(value, layer_of(owner.name or owner.output[0]))
    return owners


def _of_onnx_runtime(file: bytes, device: DeviceSpec, runtime: Pinned) -> Events:
    """Run under ONNX Runtime's profiler and read the file that it writes."""
    import onnxruntime

    from compression.onnx_session import session_options

    options = session_options(threads=device.threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "nodes")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        data = runtime.fixed_input([device.batch, *entry.shape[1:]])
        for _ in range(WARM_UP_RUNS + RUNS):
            session.run(None, {entry.name: data})
        records = json.loads(Path(session.end_profiling()).read_text())
    rows = (
        (record["name"], record["args"].get("op_name", ""), record["dur"] / 1e3)
        for record in records
        if record.get("cat") == "Node" and record["name"].endswith("_kernel_time")
    )
    return _table(rows, RUNS)


def _of_openvino(file: bytes, device: DeviceSpec, runtime: Pinned) -> Events:
    """Run with OpenVINO's performance counters.

    They are averages over all runs since the model was compiled. The first runs, which rearrange
    weights, are taken out of the sum again; interruptions stay in, so that the model is compiled
    some times for the median to leave those out.
    """
    from workers.meters.openvino_cpu import compile_file

    seen: list[tuple[str, str, float]] = []
    for _ in range(COMPILATIONS):
        compiled = compile_file(file, device.batch, device.threads, profile=True)
        request = compiled.create_infer_request()
        data = runtime.fixed_input(compiled.input(0).shape)

        def sums_ms(runs: int, already: int, request: Any = request, data: Any = data) -> Sums:
            for _ in range(runs):
                request.infer([data])
            return {
                (row.node_name, row.node_type): row.real_time.total_seconds()
                * 1e3
                * (already + runs)
                for row in request.get_profiling_info()
                if row.status == row.Status.EXECUTED
            }

        first, all_runs = sums_ms(WARM_UP_RUNS, 0), sums_ms(RUNS, WARM_UP_RUNS)
        for (name, op), ms in all_runs.items():
            # The counters have whole microseconds.
            seen.append((name, op, max(ms - first.get((name, op), 0.0), 0.0) / RUNS))
    return _table(seen, COMPILATIONS)


def _table(records: Iterable[tuple[str, str, float]], runs: int) -> Events:
    """Return each operator's times of the last runs; 0 in runs that do not count it."""
    kinds: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    for name, op, ms in records:
        kinds.setdefault(name, op)
        times.setdefault(name, []).append(ms)
    return {
        name: (kinds[name], np.array([*([0.0] * (runs - len(ms))), *ms[-runs:]]))
        for name, ms in times.items()
    }


_COUNTERS: Mapping[str, Callable[[bytes, DeviceSpec, Pinned], Events]] = {
    "onnxruntime": _of_onnx_runtime,
    "openvino": _of_openvino,
}
