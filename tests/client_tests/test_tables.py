"""What a terminal shows of fronts and progress."""

from __future__ import annotations

import doctest
import io
from collections.abc import Iterator

from rich.console import Console, RenderableType

from paretopress import wording
from paretopress.progress import ProgressView, show_until_end
from paretopress.tables import front_table, jobs_table
from paretopress.types import Event, Front, Interval, JobInfo, Reading
from tests.client_tests import examples


def shown(what: RenderableType, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO(), no_color=True)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(wording)
    assert result.attempted > 5
    assert result.failed == 0


def test_the_baseline_stands_beside_the_results() -> None:
    text = shown(front_table(examples.front(), examples.job()), width=80)
    rows = text.splitlines()
    (accuracy,) = [row for row in rows if "top-1" in row and "│" in row]
    cells = [cell.strip() for cell in accuracy.strip("│").split("│")]
    assert cells == ["top-1", "98.00 %", "97.00 %", "96.00 %"]
    assert next(row for row in rows if "[96.0, 98.0]" in row and "[95.0, 97.0]" in row)
    assert next(row for row in rows if "latency p50" in row and "0.8 ms" in row)
    assert next(row for row in rows if "0.40 x" in row and "0.25 x" in row)
    assert "Bounds: latency p50 on local/onnxruntime <= 0.6 x baseline; runtime size" in text
    assert "<= 300 kB" in " ".join(text.split())


def test_a_time_is_faster_only_where_its_whole_interval_says_so() -> None:
    def words(low: float, high: float, device: str | None = "local/onnxruntime") -> str:
        ratio = Interval(value=0.97, low=low, high=high)
        return wording.ratio_text(
            Reading(metric="latency_ms", value=1.0, device=device, ratio=ratio)
        )

    assert words(0.95, 0.99) == "0.97 x"
    assert words(0.93, 1.02) == "0.97 x (not told apart)"
    # Sizes and counts are exact.
    assert words(0.97, 1.02, device=None) == "0.97 x"


def test_large_fronts_and_narrow_terminals_lose_nothing() -> None:
    members = [examples.member(n, 0.9 + n / 100, 0.5 + n / 10) for n in range(9)]
    text = shown(front_table(examples.front(members=members)), width=80)
    assert "…" not in text
    assert all(f"member {n}" in text for n in range(9))
    assert all(f"{90 + n}.00 %" in text for n in range(9))


def test_a_front_so_far_says_that_it_is_not_confirmed() -> None:
    assert "neither recovered nor confirmed" in shown(front_table(examples.front(provisional=True)))


def test_an_infeasible_job_shows_the_nearest_and_what_stood_in_the_way() -> None:
    binding = {"constraint": examples.CONSTRAINTS[1], "relax_to": 310000.0}
    front = examples.front(
        members=[], nearest=[examples.member(5, 0.9, 0.7)], binding_constraints=[binding]
    )
    text = shown(front_table(front))
    assert "No point met every bound" in text
    assert "90.00 %" in text
    assert "In the way: runtime size <= 300 kB: relax to 310000" in text


def test_a_bound_in_the_way_may_be_named_by_its_key() -> None:
    binding = {"constraint": "macs", "limit": 5e6, "reachable": 6.5e6, "relative_price": 0.3}
    text = shown(front_table(examples.front(binding_constraints=[binding])))
    assert "In the way: macs: limit 5e+06, reachable 6.5e+06, relative price 0.3" in text


def test_a_job_without_a_front_says_so() -> None:
    assert "no front yet" in shown(front_table(examples.front(members=[], baseline={})))


def test_what_the_server_sends_is_not_read_as_markup() -> None:
    assert "[bold]x[/bold]" in shown(jobs_table([examples.job(name="[bold]x[/bold]")]))


def test_the_view_follows_trials_and_finalists() -> None:
    view = ProgressView(examples.job())
    view.saw(Event(seq=1, kind="trial.started", payload={"trial_id": "a", "number": 8}))
    recover = {"trial_id": "a", "step": "recover", "done": 2, "of": 5}
    view.saw(Event(seq=2, kind="trial.progress", payload=recover))
    view.front = examples.front(provisional=True)
    text = shown(view)
    assert "3/12 trials" in text
    assert "4 measured, 2 running, 1 something_new" in text
    assert "recover 2/5" in text
    assert "best feasible so far: top-1 97.00 %" in text
    view.saw(Event(seq=3, kind="trial.finished", payload={"trial_id": "a"}))
    view.saw(Event(seq=4, kind="novelty", payload={}))
    assert "recover" not in shown(view)


class EndedJob:
    """A job that ends while it is watched."""

    def __init__(self) -> None:
        self.state = "RUNNING"

    def info(self) -> JobInfo:
        outcome = "front_found" if self.state == "SUCCEEDED" else None
        return examples.job(state=self.state, outcome=outcome)

    def watch(self, after: int = 0) -> Iterator[Event]:
        yield Event(seq=1, kind="trial.started", payload={"trial_id": "a", "number": 8})
        self.state = "SUCCEEDED"
        yield Event(seq=2, kind="job.succeeded", payload={"state": "SUCCEEDED"})

    def front(self) -> Front:
        return examples.front(provisional=self.state != "SUCCEEDED")


def test_watching_ends_with_the_job_and_shows_its_end() -> None:
    out = io.StringIO()
    info = show_until_end(EndedJob(), console=Console(file=out, width=120))
    assert info.state == "SUCCEEDED"
    assert "SUCCEEDED (front_found)" in out.getvalue()
    assert "best of the front" in out.getvalue()
