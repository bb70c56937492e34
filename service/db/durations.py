"""What earlier trials of a model took: what a forecast is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.trial import BASELINE_AGENT, AttemptState, Fidelity
from service.db.tables import AttemptRow, JobRow, TrialRow
from workers.memory import REMEMBERED

MAX_JOBS = 20
"""The newest, that are looked at: machines and versions change."""

MAX_TRIALS = 300
"""Of these jobs, the newest."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTrial:
    """What a finished trial took.

    Attributes:
        fidelity: Proxy or full.
        seconds: Wall seconds by step; never empty.
        spec: Of its job, a `workers.job.JobSpec` as JSON.
    """

    fidelity: Fidelity
    seconds: Mapping[str, float]
    spec: Mapping[str, Any]


def of_model(session: Session, model_id: str, dataset_id: str) -> Sequence[EarlierTrial]:
    """Return the trials of a model on a dataset that were carried out, the newest first.

    The dense model's own, trials on a base, and those that were remembered or spared are left out.
    """
    jobs = (
        select(JobRow.id, JobRow.spec)
        .where(JobRow.model_id == model_id, JobRow.dataset_id == dataset_id)
        .order_by(JobRow.created_at.desc())
        .limit(MAX_JOBS)
    )
    specs = {row.id: row.spec for row in session.execute(jobs)}
    found = (
        select(AttemptRow.seconds, TrialRow.fidelity, TrialRow.job_id)
        .join(TrialRow, AttemptRow.trial_id == TrialRow.id)
        .where(
            TrialRow.job_id.in_(list(specs)),
            TrialRow.fidelity.in_([Fidelity.PROXY, Fidelity.FULL]),
            TrialRow.base == "",
            TrialRow.agent != BASELINE_AGENT,
            AttemptRow.state == AttemptState.SUCCEEDED,
        )
        .order_by(AttemptRow.ended_at.desc(), AttemptRow.id)
        .limit(MAX_TRIALS)
    )
    return [
        EarlierTrial(fidelity=fidelity, seconds=seconds, spec=specs[job_id])
        for seconds, fidelity, job_id in session.execute(found)
        if seconds and REMEMBERED not in seconds
    ]
