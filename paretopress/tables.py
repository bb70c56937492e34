"""Fronts and jobs as tables for a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paretopress import wording
from paretopress.types import Front, FrontMember, JobInfo, Reading, Readings

# What a reader looks for first comes first; metrics unknown here follow in the server's order.
ORDER = (
    "top1",
    "top5",
    "agreement",
    "latency_ms",
    "latency_hot_ms",
    "throughput",
    "runtime_bytes",
    "download_bytes",
    "resident_bytes",
    "peak_memory_bytes",
    "load_ms",
    "first_inference_ms",
    "energy_mj",
    "macs",
    "flops",
    "params",
)

# With the metrics' names and the baseline, three fit into a terminal of 80 columns.
MEMBERS_PER_TABLE = 3

Column = tuple[str, str | None, str | None]
"""Metric, device and statistic."""


def _columns(groups: Iterable[Readings]) -> list[Column]:
    found: dict[Column, None] = {}
    for readings in groups:
        for reading in readings.all:
            found.setdefault((reading.metric, reading.device, reading.statistic))
    if ("macs", None, None) in found:
        # 2 x MACs says nothing more.
        found.pop(("flops", None, None), None)

    def place(column: Column) -> int:
        return ORDER.index(column[0]) if column[0] in ORDER else len(ORDER)

    return sorted(found, key=place)


def _heading(column: Column, several_devices: bool) -> str:
    metric, device, statistic = column
    name = wording.metric_name(metric, statistic)
    return f"{name}\n{device}" if device and several_devices else name


def _cell(reading: Reading | None, *, with_ratio: bool = True) -> Text:
    if reading is None:
        return Text("-")
    ratio = wording.ratio_text(reading) if with_ratio else ""
    lines = (wording.reading_text(reading), wording.interval_text(reading), ratio)
    # Text, not str: what the server sends is never read as markup.
    return Text("\n".join(line for line in lines if line))


def _members_tables(title: str, front: Front, members: Sequence[FrontMember]) -> list[Table]:
    """Return tables with a row per metric and a column per member, some members in each."""
    columns = _columns([front.baseline, *(member.readings for member in members)])
    devices = {device for _, device, _ in columns if device}
    tables = []
    for start in range(0, len(members), MEMBERS_PER_TABLE):
        some = members[start : start + MEMBERS_PER_TABLE]
        heading = Text(title if start == 0 else f"{title}, continued")
        table = Table(title=heading, title_justify="left", show_lines=True)
        table.add_column("", no_wrap=True)
        table.add_column("baseline", justify="right")
        for number in range(start, start + len(some)):
            table.add_column(f"member {number}", justify="right")
        for column in columns:
            cells = (_cell(member.readings.get(*column)) for member in some)
            dense = _cell(front.baseline.get(*column), with_ratio=False)
            table.add_row(Text(_heading(column, len(devices) > 1)), dense, *cells)
        tables.append(table)
    return tables


def front_table(front: Front, job: JobInfo | None = None) -> RenderableType:
    """Return a front with the baseline beside the results.

    Below a value stand its 95 % interval and its ratio to the baseline, measured beside it. Where
    nothing met all bounds, the nearest points and the bounds that stood in the way are shown.

    Args:
        front: What to show.
        job: Its job, for the bounds; None leaves them out.
    """
    parts: list[RenderableType] = []
    if front.members:
        count = len(front.members)
        kind = "Front so far, neither recovered nor confirmed," if front.provisional else "Front"
        title = f"{kind} of {front.job_id}: {count} member{'s' if count > 1 else ''}"
        parts += _members_tables(title, front, front.members)
    elif front.nearest:
        parts.append(Text("No point met every bound. These came nearest:", style="yellow"))
        parts += _members_tables(f"Nearest of {front.job_id}", front, front.nearest)
    else:
        parts.append(Text(f"Job {front.job_id} has no front yet."))
    bounds = (job.spec.get("constraints") or []) if job else []
    if bounds:
        parts.append(Text("Bounds: " + "; ".join(wording.constraint_text(b) for b in bounds)))
    parts += [Text(f"In the way: {_binding_text(b)}") for b in front.binding_constraints]
    warnings = {r.warning for m in front.members for r in m.readings.all if r.warning}
    parts += [Text(f"! {warning}", style="yellow") for warning in sorted(warnings)]
    return Group(*parts)


def _binding_text(binding: object) -> str:
    if not isinstance(binding, dict):
        return str(binding)
    constraint = binding.get("constraint")
    text = str(constraint or "")
    if isinstance(constraint, dict):
        text = wording.constraint_text(constraint)
    rest = ", ".join(
        f"{key.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in binding.items()
        if key != "constraint" and not isinstance(value, dict | list) and value is not None
    )
    return ": ".join(part for part in (text, rest) if part)


def jobs_table(jobs: Iterable[JobInfo]) -> Table:
    """Return a listing of jobs."""
    table = Table()
    for heading in ("job", "name", "state", "outcome", "trials"):
        table.add_column(heading)
    for job in jobs:
        budget = job.progress.budget_trials
        trials = f"{job.progress.trials}{f'/{budget}' if budget else ''}"
        table.add_row(*map(Text, (job.id, job.name, job.state, job.outcome or "", trials)))
    return table
