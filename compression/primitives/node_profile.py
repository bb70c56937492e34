"""Time of each node of a graph, as ONNX Runtime's own profiler sees it."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from compression.onnx_graph import LAYER_OPS

_WARM_UP = 5
_RUNS = 30
_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/duplicated)+$")


def node_times(
    onnx: bytes, graph_float: ModelProto, probe: NDArray[np.float32]
) -> dict[str, float]:
    """Return the median time, in microseconds, of every layer of a graph.

    A layer's time includes the conversions to and from integers at its output, at the graph's
    input for the layers that read it, and the activation that the runtime fused into it. Good for
    a ranking; whether a change helps is for a timing of the whole model to say.

    Args:
        onnx: The graph to run, float or quantized.
        graph_float: The float graph whose node names it carries.
        probe: `1 x C x H x W` float32.
    """
    events = _profile(onnx, probe)
    owners = _owners(graph_float)
    total: dict[str, float] = {}
    for event, durations in events.items():
        name = _SUFFIX.sub("", event.removesuffix("_kernel_time"))
        name = re.sub(r"(\.q|\.dq)$", "", name)
        owner = owners.get(name)
        if owner is not None:
            total[owner] = total.get(owner, 0.0) + float(np.median(durations[_WARM_UP:]))
    return total


def _owners(model: ModelProto) -> dict[str, str]:
    """Return which layer each node name and value name counts for."""
    producers = {output: node for node in model.graph.node for output in node.output}
    owners: dict[str, str] = {}
    for node in model.graph.node:
        source = producers.get(node.input[0]) if node.input else None
        if node.op_type in LAYER_OPS:
            owners[node.name] = node.name
            for value in node.input:
                if value == model.graph.input[0].name:
                    owners.setdefault(value, node.name)
        elif node.op_type in ("Relu", "Clip") and source and source.op_type in LAYER_OPS:
            # The runtime names a fused convolution after its activation.
            owners[node.name] = source.name
    return owners


def _profile(onnx: bytes, probe: NDArray[np.float32]) -> dict[str, list[float]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "nodes")
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, {name: probe})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(float(event["dur"]))
    return times
