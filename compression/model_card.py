"""The model card of a checkpoint as plain data; report.json and README.md tell it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from compression.artifact import Preprocessing
from compression.errors import CheckpointInvalid

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A measured or counted value.

    Attributes:
        value: In the metric's unit.
        low: Lower end of the 95 % interval; None for an exact count.
        high: Upper end; None for an exact count.
        n: Samples behind it; 1 for a count.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One metric of the result, beside the same metric of the original network.

    Attributes:
        metric: Name, e.g. `top1` or `latency_ms`.
        unit: Unit, empty for shares and counts.
        baseline: Of the original network; None where it has none.
        result: Of this checkpoint.
        change: Ratio or difference with its own interval, from paired measurements.
        change_kind: What `change` is.
        conditions: Split, device, statistic: whatever the number holds for.
        macs_ratio: Of times: multiply-adds over the original network's, to be seen beside what
            was gained by them.
    """

    metric: str
    unit: str = ""
    baseline: Interval | None
    result: Interval
    change: Interval | None = None
    change_kind: str = "ratio"
    conditions: str = ""
    macs_ratio: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """What was decided for one layer.

    Attributes:
        name: Dotted path.
        decision: In words, e.g. `16 -> 8 channels` or `float32: 8 bits cost accuracy`.
        params_before: Parameters in the original network.
        params_after: Parameters here.
        macs_before: Multiply-adds for one input in the original network.
        macs_after: Multiply-adds here.
        precision: `int8` or `float32`.
        ms_before: Median time of the layer in one inference of the original network, by the
            runtime's own counters on `ModelCard.profiled_on`; None where it was not counted.
        ms_after: The same of this checkpoint.
    """

    name: str
    decision: str
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    precision: str
    ms_before: float | None = None
    ms_after: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """What the deployed graph does on the runtime of one device.

    Attributes:
        device: Name.
        runtime: Its runtime.
        agreement: Share of inputs on which it decides like the graph on ONNX Runtime.
        difference: Largest difference to its outputs there, over their largest size.
        scores: Accuracies on held-out data, by metric.
    """

    device: str
    runtime: str
    agreement: float
    difference: float
    scores: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoardRow:
    """What the boards of a pool measured of the deployed graph, beside the original there.

    Attributes:
        device: Name of the pool.
        runtime: Its runtime.
        threads: Of one inference.
        fingerprint: SHA-256 of all that the pool's boards have in common.
        hardware: What they say of themselves.
        times: SHA-256 of the raw times that the boards sent.
        metrics: Read of them by the server.
    """

    device: str
    runtime: str
    threads: int
    fingerprint: str
    hardware: Mapping[str, str]
    times: str
    metrics: Sequence[MetricRow]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """What one step of the making cost and what it did to the score.

    Attributes:
        name: E.g. `prune`, `recalibrate`, `distil`, `quantize`.
        detail: Settings in words.
        score: Quality after the step, on the split the search was allowed to see.
        wall_s: Seconds it took.
    """

    name: str
    detail: str = ""
    score: Interval | None = None
    wall_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Everything a reader needs to judge a checkpoint.

    Attributes:
        name: Title of the checkpoint.
        source_name: Name of the original network.
        source_digest: SHA-256 of its weights; empty where a builder made them.
        source_licence: What its owner says about its licence; empty where nothing was said.
        input_shape: C, H, W.
        preprocessing: From stored pixels to inputs.
        metrics: One row a metric that the server itself measured or counted.
        layers: One row a layer, in forward order.
        profiled_on: Device of the layers' times; empty where there are none.
        devices: One row a device whose runtime is not the one that `metrics` were scored on.
        boards: One row a pool of boards that the job names, in the order of the job's devices.
        steps: In the order they ran.
        data: Dataset facts by name, e.g. `{"dataset": "cifar10", "test rows": "5000"}`.
        seed: Seed of the job.
        versions: Version by program; see `installed_versions`.
        warnings: What a reader must know before trusting a number.
    """

    name: str
    source_name: str
    source_digest: str
    source_licence: str = ""
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    metrics: Sequence[MetricRow]
    layers: Sequence[LayerRow] = ()
    profiled_on: str = ""
    devices: Sequence[DeviceRow] = ()
    boards: Sequence[BoardRow] = ()
    steps: Sequence[StepRow] = ()
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seed: int
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModelCard:
        """Rebuild a card from `to_json`, or from a report.json that holds more.

        Raises:
            CheckpointInvalid: It is damaged, or of another version.
        """
        try:
            if data["version"] != VERSION:
                raise CheckpointInvalid(
                    f"The report has version {data['version']}; this program reads {VERSION}"
                )
            fields = {f.name: data[f.name] for f in dataclasses.fields(ModelCard) if f.name in data}
            pre = data["preprocessing"]
            fields["preprocessing"] = Preprocessing(
                **{**pre, "mean": tuple(pre["mean"]), "std": tuple(pre["std"])}
            )
            fields["input_shape"] = tuple(data["input_shape"])
            fields["metrics"] = _metrics(data["metrics"])
            fields["layers"] = tuple(LayerRow(**row) for row in data["layers"])
            fields["devices"] = tuple(
                DeviceRow(**{**row, "scores": {k: Interval(**v) for k, v in row["scores"].items()}})
                for row in data["devices"]
            )
            fields["boards"] = tuple(
                BoardRow(**{**row, "metrics": _metrics(row["metrics"])})
                for row in data.get("boards", ())
            )
            fields["steps"] = tuple(
                StepRow(**{**row, "score": _interval(row["score"])}) for row in data["steps"]
            )
            fields["warnings"] = tuple(data["warnings"])
            return ModelCard(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointInvalid(f"The report cannot be read: {error}") from error


def _metrics(rows: Sequence[Mapping[str, Any]]) -> tuple[MetricRow, ...]:
    intervals = ("baseline", "result", "change")
    return tuple(
        MetricRow(**{**row, **{name: _interval(row[name]) for name in intervals}}) for row in rows
    )


def _interval(data: Mapping[str, Any] | None) -> Interval | None:
    return None if data is None else Interval(**data)


def installed_versions() -> dict[str, str]:
    """Return the versions of the programs that make a checkpoint."""
    versions = {"python": platform.python_version()}
    for name in ("paretopress", "torch", "onnx", "onnxruntime", "numpy", "safetensors"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
