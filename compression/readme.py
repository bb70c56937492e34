"""The model card as the README.md of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compression.model_card import (
    BoardRow,
    DeviceRow,
    Interval,
    LayerRow,
    MetricRow,
    ModelCard,
    StepRow,
)


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
    if card.boards:
        parts.append(
            "## On boards\n\nMeasured on boards, beside the original network on the same board. "
            "Nothing under Results is of a board.\n\n" + "\n\n".join(map(_board_part, card.boards))
        )
    if card.layers:
        parts.append("## Layers\n\n" + _layer_table(card.layers, card.profiled_on))
    if card.steps:
        parts.append("## What each step cost\n\n" + _step_table(card.steps))
    # Sorted, as in report.json: a card read from there gives the same README.
    facts = {**dict(sorted(card.data.items())), "seed": str(card.seed)}
    facts["source SHA-256"] = card.source_digest or "none"
    facts.update({f"version of {name}": number for name, number in sorted(card.versions.items())})
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
    metrics = sorted({metric for row in rows for metric in row.scores})
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


def _board_part(row: BoardRow) -> str:
    hardware = ", ".join(f"{name} {value}" for name, value in sorted(row.hardware.items()))
    threads = f"{row.threads} thread{'' if row.threads == 1 else 's'}"
    return (
        f"### {_text(row.device)}\n\n{_text(f'{row.runtime}, {threads}; {hardware}')}\n\n"
        f"Fingerprint {_code(row.fingerprint)}, raw times {_code(row.times)}.\n\n"
        + _metric_table(row.metrics)
    )


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
