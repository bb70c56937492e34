"""A job's progress as live bars, in a terminal or a notebook."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from paretopress import wording
from paretopress.errors import ClientError
from paretopress.types import Event, Front, JobInfo, Readings

# Asking for job and front at every event would ask hundreds of times while old events are replayed.
REFRESH_S = 1.0
BAR_WIDTH = 32
MAX_RUNNING_SHOWN = 8
# How workers count their steps: done and total.
COUNTERS = (("done", "of"), ("epoch", "epochs"), ("steps_done", "steps"))
STATE_ORDER = ("MEASURED", "INFEASIBLE", "FAILED", "CANCELLED", "RUNNING", "PROPOSED")


class Watched(Protocol):
    """What is watched: a `paretopress.Job`."""

    def info(self) -> JobInfo:
        """Return the job as it stands."""
        ...

    def watch(self, after: int = 0) -> Iterator[Event]:
        """Yield its events until it has ended."""
        ...

    def front(self) -> Front:
        """Return its front, provisional or final."""
        ...


@dataclasses.dataclass(slots=True)
class RunningTrial:
    """A trial that runs now: what it does, and how far it is where it says so."""

    number: int
    fidelity: str
    step: str = ""
    done: float | None = None
    of: float | None = None


class ProgressView:
    """What is known of a job while it is watched; rich renders it.

    Args:
        info: The job at the beginning.
    """

    def __init__(self, info: JobInfo) -> None:
        self.info = info
        self.front: Front | None = None
        self.running: dict[str, RunningTrial] = {}

    def saw(self, event: Event) -> None:
        """Take an event in. Unknown kinds change nothing."""
        payload = event.payload
        trial_id = str(payload.get("trial_id", ""))
        if event.kind == "trial.started":
            self.running[trial_id] = RunningTrial(
                number=int(payload.get("number", 0)), fidelity=str(payload.get("fidelity", ""))
            )
        elif event.kind == "trial.progress" and trial_id in self.running:
            trial = self.running[trial_id]
            trial.step = str(payload.get("step", trial.step))
            trial.done, trial.of = _count(payload)
        elif event.kind.startswith("trial."):
            self.running.pop(trial_id, None)
        elif event.ends_job:
            self.running.clear()

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._heading(), self._trials()]
        best = self._best()
        if best is not None:
            parts.append(best)
        shown = sorted(self.running.values(), key=lambda trial: trial.number)
        parts += [_running_line(trial) for trial in shown[:MAX_RUNNING_SHOWN]]
        return Group(*parts)

    def _heading(self) -> Text:
        text = Text.assemble((self.info.name or self.info.id, "bold"), "  ", self.info.state)
        if self.info.outcome:
            text.append(f" ({self.info.outcome})")
        wall_s = self.info.progress.wall_s
        text.append(f"  {wording.duration(wall_s)}" if wall_s else "", style="dim")
        warm = self.info.warm_trials
        return text.append(f"  warm: {warm} trials known from earlier jobs" if warm else "")

    def _trials(self) -> Table:
        progress = self.info.progress
        row = Table.grid(padding=(0, 1))
        total = progress.budget_trials
        count = f"{progress.trials}/{total} trials" if total else f"{progress.trials} trials"
        states = [name for name in STATE_ORDER if progress.by_state.get(name)]
        states += sorted(set(progress.by_state) - set(STATE_ORDER))
        counts = ", ".join(f"{progress.by_state[s]} {s.lower()}" for s in states)
        bar = ProgressBar(
            total=float(total) if total else None,
            completed=float(min(progress.trials, total) if total else progress.trials),
            width=BAR_WIDTH,
            pulse=total is None and not self.info.finished,
        )
        row.add_row("search", bar, Text(count), Text(counts, style="dim"))
        return row

    def _best(self) -> Text | None:
        if self.front is None or not self.front.members:
            return None
        objectives = self.info.spec.get("objectives") or [{"metric": "top1"}]
        metric = str(objectives[0].get("metric", "top1"))
        measured = [m for m in self.front.members if m.readings.get(metric)]
        if not measured:
            return None
        best = self.front.model_copy(update={"members": tuple(measured)}).best(metric)
        word = "best feasible so far" if self.front.provisional else "best of the front"
        return Text(f"{word}: {_summary(best.readings)}")


BESIDE = frozenset(
    {
        *("flops", "params", "top5", "throughput", "resident_bytes", "latency_hot_ms"),
        *("load_ms", "first_inference_ms", "peak_memory_bytes", "energy_mj"),
    }
)
"""Metrics that one line has no room for."""


def _summary(readings: Readings) -> str:
    shown = []
    for reading in readings.all:
        if reading.metric in BESIDE or reading.statistic in ("p95", "p99"):
            continue
        ratio = f" ({wording.ratio_text(reading)})" if reading.ratio else ""
        name = wording.metric_name(reading.metric)
        shown.append(f"{name} {wording.number(reading.metric, reading.value)}{ratio}")
    return ", ".join(shown)


def _count(payload: Mapping[str, Any]) -> tuple[float | None, float | None]:
    for done, of in COUNTERS:
        a, b = payload.get(done), payload.get(of)
        if isinstance(a, int | float) and isinstance(b, int | float) and b > 0:
            return float(a), float(b)
    return None, None


def _running_line(trial: RunningTrial) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    label = Text(f"trial {trial.number} {trial.fidelity}")
    if trial.of:
        bar = ProgressBar(total=trial.of, completed=trial.done or 0.0, width=BAR_WIDTH)
        row.add_row(label, bar, Text(f"{trial.step} {trial.done:g}/{trial.of:g}"))
    else:
        row.add_row(label, Text(trial.step, style="dim"))
    return row


def show_until_end(
    job: Watched, *, timeout_s: float | None = None, console: Console | None = None
) -> JobInfo:
    """Show a job live until it has ended; return it as it then stands.

    Args:
        job: What to watch.
        timeout_s: Give up after this long; looked at whenever an event comes in.
        console: Where to draw; stderr's by default, so that stdout stays clean.

    Raises:
        ClientError: The time is over.
    """
    view = ProgressView(job.info())
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    refreshed = 0.0
    console = console or Console(stderr=True)
    with Live(view, console=console, refresh_per_second=4):
        for event in job.watch():
            view.saw(event)
            now = time.monotonic()
            if deadline is not None and now > deadline:
                raise ClientError(f"The job is still {view.info.state} after {timeout_s} s")
            if now - refreshed >= REFRESH_S:
                view.info, view.front = job.info(), job.front()
                refreshed = now
        view.info, view.front = job.info(), job.front()
        view.running.clear()
    if not console.is_terminal:
        # Into a file, rich writes the last state without the end of its line.
        console.print()
    return view.info
