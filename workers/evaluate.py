"""One attempt, end to end: the one place where a plan meets a real model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compression.errors import NotCertified, PlanInvalid
from search.measurement import Infeasible
from search.trial import Fidelity
from workers.confirm import confirm
from workers.context import JobContext
from workers.errors import BlobMissing
from workers.executor import CHECKPOINT, Finished, Runner, Work
from workers.job import JobSpec
from workers.kept_recovery import KeptRecovery
from workers.open_store import open_store
from workers.prepare import prepare
from workers.quiet import QuietNode
from workers.rungs import full, proxy
from workers.steps import Steps

logger = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any]], None]


def evaluate(work: Work, context: JobContext, report: Report) -> Finished:
    """Run one attempt of a trial at its fidelity.

    A plan that its certificate refuses or that cannot start from the trial's base is `Infeasible`.
    Everything else that breaks is raised and becomes a `Failed` outcome at the worker's edge
    (`workers.edge`).

    Checkpoints of a training are stored and reported as they come; an attempt that is given one
    goes on there.
    """
    steps = Steps()
    trial = work.trial
    resume = _checkpoint(work, context)

    def keep(data: bytes) -> None:
        report({CHECKPOINT: context.store.put(data)})

    try:
        match trial.fidelity:
            case Fidelity.PROXY | Fidelity.SHORT:
                outcome = proxy(trial, context, steps, report)
            case Fidelity.FULL:
                kept = KeptRecovery(context.store, keep, resume)
                outcome = full(trial, context, steps, report, kept)
            case Fidelity.CONFIRMED:
                outcome = confirm(trial, context, steps)
            case Fidelity.PREPARED:
                outcome = prepare(trial, context, steps, report, keep, resume)
    except NotCertified as error:
        outcome = Infeasible(str(error))
    except PlanInvalid as error:
        from_base = trial.base is not None and trial.fidelity is not Fidelity.CONFIRMED
        if not from_base and trial.fidelity is not Fidelity.PREPARED:
            raise
        outcome = Infeasible(str(error))
    return Finished(work=work, outcome=outcome, artifacts=steps.artifacts, seconds=steps.seconds)


def _checkpoint(work: Work, context: JobContext) -> bytes | None:
    """Return the checkpoint that the attempt goes on from; None where there is none any more."""
    digest = work.attempt.resume
    if digest is None:
        return None
    try:
        return context.store.get(digest)
    except BlobMissing as error:
        logger.warning("training begins anew", extra={"reason": str(error)})
        return None


def runner(spec: JobSpec, store_url: str, quiet_folder: str) -> Runner:
    """Build the warm context of a job and return what runs its attempts."""
    quiet = QuietNode(Path(quiet_folder))
    with quiet.busy():
        context = JobContext.build(spec, open_store(store_url), quiet)

    def run(work: Work, report: Report) -> Finished:
        with quiet.busy():
            return evaluate(work, context, report)

    return run
