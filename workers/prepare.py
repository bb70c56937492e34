"""A trial that trains for others: what it leaves is stored as the base of later trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from search.measurement import Measured, Measurement, Outcome
from search.trial import PREPARED_ROLE, Trial
from workers.bases import resolve, store_prepared
from workers.context import JobContext
from workers.errors import WorkerError
from workers.preparations import PREPARATIONS
from workers.preparations.preparation import Order, Prepared
from workers.steps import Steps

Report = Callable[[Mapping[str, Any]], None]


def prepare(
    trial: Trial,
    context: JobContext,
    steps: Steps,
    report: Report,
    keep: Callable[[bytes], None],
    resume: bytes | None,
) -> Outcome:
    """Carry out a trial's preparation; its artifact has the role `prepared`.

    Raises:
        WorkerError: The trial has no preparation, or one of a kind that is unknown here.
    """
    if trial.preparation is None:
        raise WorkerError(f"Trial {trial.id} at fidelity {trial.fidelity} names no preparation")
    run = resolve(PREPARATIONS, trial.preparation.kind, "carry out")
    prepared: Prepared = run(
        Order(trial=trial, context=context, steps=steps, report=report, resume=resume, keep=keep)
    )
    with steps.step("store"):
        steps.artifacts[PREPARED_ROLE] = store_prepared(
            trial.preparation, trial.plan, trial.base, prepared.parts, context.store
        )
    return Measured(Measurement(prepared.readings), dict(prepared.found))
