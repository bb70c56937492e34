"""The model card of a checkpoint: README.md and report.json from one plain data structure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from compression.artifact import Preprocessing


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
        metrics: One row a metric.
        layers: One row a layer, in forward order.
        profiled_on: Device of the layers' times; empty where there are none.
        devices: One row a device whose runtime is not the one that `metrics` were scored on.
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
    steps: Sequence[StepRow] = ()
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seed: int
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"version": 1, **dataclasses.asdict(self)}


def installed_versions() -> dict[str, str]:
    """Return the versions of the programs that make a checkpoint."""
    versions = {"python": platform.python_version()}
    for name in ("paretopress", "torch", "onnx", "onnxruntime", "numpy", "safetensors"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def render_readme(card: ModelCard, sizes: Mapping[str, int]) -> str:
    """Return the card as Markdown.

    Args:
        card: What to tell.
        sizes: Bytes of every other file of the checkpoint, by name.
    """
    parts = [
        f"# {_text(card.name)}",
        f"A compressed form of **{_text(card.source_name)}**. It loads without the program that "
        "made it.",
        *(f"> **Note.** {_text(warning)}" for warning in card.warnings),
        "## Results\n\n"
        "Baseline is the original network, measured in the same session. Brackets hold 95 % "
        "intervals.\n\n" + _metric_table(card.metrics),
        "## Use\n\n" + _usage(card),
        "## Files\n\n"
        + _table(["file", "bytes"], [[_code(n), f"{s:,}"] for n, s in sizes.items()]),
    ]
    if card.devices:
        parts.append(
            "## On each device\n\nAccuracies under Results are those of ONNX Runtime; these are of "
            "the same graph on other runtimes.\n\n" + _device_table(card.devices)
        )
    if card.layers:
        parts.append("## Layers\n\n" + _layer_table(card.layers, card.profiled_on))
    if card.steps:
        parts.append("## What each step cost\n\n" + _step_table(card.steps))
    facts = {**card.data, "seed": str(card.seed), "source SHA-256": card.source_digest or "none"}
    facts.update({f"version of {name}": version for name, version in card.versions.items()})
    rows = [[_text(name), _text(value)] for name, value in facts.items()]
    parts.append("## Data, seed and versions\n\n" + _table(["what", "value"], rows))
    parts.append(
        "`plan.json` holds the decisions and the kept channels; with the source network and the "
        "seed it makes this checkpoint again. `LICENSE-NOTE` says whose work this derives from."
    )
    return "\n\n".join(parts) + "\n"


def _usage(card: ModelCard) -> str:
    pre = card.preprocessing
    channels, height, width = card.input_shape
    integers = any(row.precision == "int8" for row in card.layers)
    note = (
        " It computes in integers; `model.py` is the same network in float32, to train on or to "
        "export elsewhere, and its answers differ from the graph's by the rounding."
        if integers
        else ""
    )
    return (
        f"Input: float32, N x {channels} x {height} x {width}, "
        f"`(pixel / {pre.scale:g} - mean) / std` with mean {list(pre.mean)} and std "
        f"{list(pre.std)}. Output: logits.\n\n"
        "```python\n"
        "from model import load          # torch and safetensors, nothing else\n"
        "logits = load()(inputs)\n\n"
        "import onnxruntime              # the deployed graph, the one that was timed\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        'logits = session.run(None, {"input": inputs})[0]\n'
        "```\n\n"
        f"`model.onnx` is what was timed.{note} `model.ppz` is `model.onnx`, entropy-coded for the "
        "way over the network."
    )


def _metric_table(rows: Sequence[MetricRow]) -> str:
    cells = [
        [
            _text(f"{row.metric} ({row.unit})" if row.unit else row.metric),
            _interval(row.baseline),
            _interval(row.result),
            _change(row),
            str(row.result.n),
            _text(row.conditions),
        ]
        for row in rows
    ]
    return _table(["metric", "baseline", "this checkpoint", "change", "n", "conditions"], cells)


def _change(row: MetricRow) -> str:
    words = [f"{row.change_kind} {_interval(row.change)}"] if row.change else []
    if row.macs_ratio is not None:
        words.append(f"MACs: ratio {_number(row.macs_ratio)}")
    return "; ".join(words)


def _device_table(rows: Sequence[DeviceRow]) -> str:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    cells = [
        [
            _text(row.device),
            _text(row.runtime),
            *(_interval(row.scores.get(metric)) for metric in metrics),
            f"{row.agreement:.2%}",
            f"{row.difference:.1e}",
        ]
        for row in rows
    ]
    header = ["device", "runtime", *metrics, "decides alike", "largest difference"]
    return _table(header, cells)


def _layer_table(rows: Sequence[LayerRow], profiled_on: str) -> str:
    header = ["layer", "decision", "parameters", "MACs", "precision"]
    cells = [
        [
            _code(row.name),
            _text(row.decision),
            f"{row.params_before:,} -> {row.params_after:,}",
            f"{row.macs_before:,} -> {row.macs_after:,}",
            row.precision,
        ]
        for row in rows
    ]
    if not profiled_on:
        return _table(header, cells)
    times = [[f"{_ms(row.ms_before)} -> {_ms(row.ms_after)}"] for row in rows]
    table = _table([*header, "ms"], [c + t for c, t in zip(cells, times, strict=True)])
    return (
        f"Milliseconds are the runtime's own counts on {_text(profiled_on)}: good to compare "
        f"layers by, not to add up.\n\n{table}"
    )


def _ms(value: float | None) -> str:
    return "not counted" if value is None else f"{value:.3f}"


def _step_table(rows: Sequence[StepRow]) -> str:
    cells = [
        [
            _text(row.name),
            _text(row.detail),
            _interval(row.score),
            "" if row.wall_s is None else f"{row.wall_s:.1f}",
        ]
        for row in rows
    ]
    return _table(["step", "settings", "score after it", "seconds"], cells)


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None or interval.high is None:
        return _number(interval.value)
    ends = f"[{_number(interval.low)}, {_number(interval.high)}]"
    return f"{_number(interval.value)} {ends}"


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _text(text: str) -> str:
    """Keep a name from breaking the table, or from being read as markup or a link."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    for character in "\\`|[]":
        escaped = escaped.replace(character, f"\\{character}")
    return " ".join(escaped.split())


def _code(text: str) -> str:
    """Return a name in a code span, where only its end and the table's bars have a meaning."""
    plain = " ".join(text.replace("`", "'").replace("|", "\\|").split())
    return f"`{plain}`"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
