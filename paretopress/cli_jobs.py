"""Commands about jobs: `submit`, `watch`, `front`, `pull`, `cancel`, `jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from paretopress.cli_errors import ExitCode, console, friendly_errors
from paretopress.cli_options import ApiKey, JobId, Url, connect
from paretopress.jobfile import read_job
from paretopress.jobs import Job
from paretopress.tables import front_table, jobs_table
from paretopress.types import JobInfo

LOCAL_DEVICE = "local/onnxruntime"
Ratio = Annotated[float | None, typer.Option(min=0.0, help="At most this share of the baseline.")]


def submit(
    job_file: Annotated[
        Path | None,
        typer.Argument(metavar="[JOB_FILE]", help="Job as JSON or TOML; options go before it."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model, mdl_...")] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset, dst_...")] = None,
    name: Annotated[str | None, typer.Option(help="Your name for the job.")] = None,
    max_latency_ratio: Ratio = None,
    max_runtime_bytes_ratio: Ratio = None,
    max_macs_ratio: Ratio = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of top-1, as a share: 0.01 is a point.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the latency is meant.")] = LOCAL_DEVICE,
    trials: Annotated[int | None, typer.Option(min=1, help="Search trials.")] = None,
    wall_s: Annotated[float | None, typer.Option(min=1.0, help="Seconds of search.")] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.0, help="Of recovery of each finalist.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be searched; start nothing.")
    ] = False,
    watch_it: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Stay and show live progress.")
    ] = True,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Start a job from a file, from options, or from both (options win).

    Prints the job's identifier on the first line of stdout.
    """
    with friendly_errors(), connect(url, api_key) as client:
        body: dict[str, Any] = read_job(job_file) if job_file else {}
        given = {"name": name, "model_id": model, "dataset_id": dataset, "seed": seed}
        body.update({key: value for key, value in given.items() if value is not None})
        body.setdefault("objectives", [{"metric": "top1", "direction": "maximize"}])
        budget = {"trials": trials, "wall_s": wall_s}
        _merge(body, "budget", {k: v for k, v in budget.items() if v is not None})
        _merge(body, "recovery", {"epochs": epochs} if epochs is not None else {})
        bounds: list[dict[str, Any]] = []
        if max_latency_ratio is not None:
            timed = {"metric": "latency_ms", "statistic": "p50", "device": device}
            bounds.append({**timed, "at_most": max_latency_ratio, "relative_to": "baseline"})
        for metric, ratio in (("runtime_bytes", max_runtime_bytes_ratio), ("macs", max_macs_ratio)):
            if ratio is not None:
                bounds.append({"metric": metric, "at_most": ratio, "relative_to": "baseline"})
        if max_accuracy_drop is not None:
            floor = {"metric": "top1", "at_least": -max_accuracy_drop}
            bounds.append({**floor, "relative_to": "baseline_difference"})
        # A bound given as an option replaces the file's bound on the same metric.
        replaced = {bound["metric"] for bound in bounds}
        kept = [b for b in body.get("constraints", []) if b.get("metric") not in replaced]
        body["constraints"] = kept + bounds
        if dry_run:
            console.print_json(data=client.dry_run(body))
            return
        job = client.submit(body)
        console.print(job.id, highlight=False)
        if watch_it:
            _watch(job)


def _merge(body: dict[str, Any], key: str, given: dict[str, Any]) -> None:
    if given:
        body[key] = {**body.get(key, {}), **given}


def watch(job_id: JobId, url: Url = None, api_key: ApiKey = None) -> None:
    """Show a job's progress live until it ends, then its front. Ctrl-C leaves the job running."""
    with friendly_errors(), connect(url, api_key) as client:
        _watch(client.job(job_id))


def _watch(job: Job) -> None:
    info = job.wait()
    console.print(front_table(job.front(), info))
    _exit_by_outcome(info)


def _exit_by_outcome(info: JobInfo) -> None:
    if info.outcome == "infeasible":
        raise typer.Exit(ExitCode.INFEASIBLE)
    if info.state == "CANCELLED":
        raise typer.Exit(ExitCode.JOB_ENDED)


def front(
    job_id: JobId,
    as_json: Annotated[bool, typer.Option("--json", help="The server's answer as JSON.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print a job's front with the baseline beside the results."""
    with friendly_errors(), connect(url, api_key) as client:
        if as_json:
            console.print_json(data=client.get(f"/jobs/{job_id}/front"))
            return
        job = client.job(job_id)
        console.print(front_table(job.front(), job.info()))


def pull(
    job_id: JobId,
    member: Annotated[
        int | None, typer.Option(min=0, help="Number of the member, as `front` prints it.")
    ] = None,
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder.")] = Path("checkpoints"),
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Download checkpoints: one member into the folder, or all of them into folders below it."""
    with friendly_errors(), connect(url, api_key) as client:
        job = client.job(job_id)
        if member is None:
            pulled = job.pull_all(to)
            if not pulled:
                raise LookupError(f"Job {job_id} has no front to pull from")
        else:
            job.pull(to, member)
            pulled = [to]
        for folder in pulled:
            console.print(Text(str(folder)), soft_wrap=True)


def cancel(job_id: JobId, url: Url = None, api_key: ApiKey = None) -> None:
    """Stop a job; what was measured stays."""
    with friendly_errors(), connect(url, api_key) as client:
        info = client.job(job_id).cancel()
        console.print(Text(f"{info.id} {info.state}"))


def jobs(url: Url = None, api_key: ApiKey = None) -> None:
    """List all jobs."""
    with friendly_errors(), connect(url, api_key) as client:
        console.print(jobs_table(client.jobs()))
