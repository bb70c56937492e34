"""One attempt, end to end: the one place where a plan meets a real model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compression.errors import NotCertified
from search.measurement import Infeasible
from search.trial import Fidelity
from workers.confirm import confirm
from workers.context import JobContext
from workers.errors import WorkerError
from workers.executor import Finished, Runner, Work
from workers.job import JobSpec
from workers.open_store import open_store
from workers.quiet import QuietNode
from workers.rungs import full, proxy
from workers.steps import Steps

Report = Callable[[Mapping[str, Any]], None]


def evaluate(work: Work, context: JobContext, report: Report) -> Finished:
    """Run one attempt of a trial at its fidelity.

    A plan that its certificate refuses is `Infeasible`. Everything else that breaks is raised and
    becomes a `Failed` outcome at the worker's edge (`workers.edge`).

    Raises:
        WorkerError: The trial starts from an artifact that its rung cannot start from.
    """
    steps = Steps()
    trial = work.trial
    if trial.base is not None and trial.fidelity is not Fidelity.CONFIRMED:
        raise WorkerError(
            f"Trial {trial.id} at fidelity {trial.fidelity} starts from {trial.base[:12]}; "
            "only confirmation starts from anything but the job's model"
        )
    try:
        match trial.fidelity:
            case Fidelity.PROXY | Fidelity.SHORT:
                outcome = proxy(trial, context, steps, report)
            case Fidelity.FULL:
                outcome = full(trial, context, steps, report)
            case Fidelity.CONFIRMED:
                outcome = confirm(trial, context, steps)
    except NotCertified as error:
        outcome = Infeasible(str(error))
    return Finished(work=work, outcome=outcome, artifacts=steps.artifacts, seconds=steps.seconds)


def runner(spec: JobSpec, store_url: str, quiet_folder: str) -> Runner:
    """Build the warm context of a job and return what runs its attempts."""
    quiet = QuietNode(Path(quiet_folder))
    with quiet.busy():
        context = JobContext.build(spec, open_store(store_url), quiet)

    def run(work: Work, report: Report) -> Finished:
        with quiet.busy():
            return evaluate(work, context, report)

    return run
