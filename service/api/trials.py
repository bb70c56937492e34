"""Trials of a job: what was tried and what came of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from search.measurement import (
    Failed,
    Infeasible,
    Measured,
    Measurement,
    outcome_to_json,
)
from search.trial import BASELINE_AGENT, Fidelity, TrialState
from service.api.conditional import conditional
from service.api.deps import Cursor, Limit, PrincipalDep, ServicesDep
from service.api.schemas.page import PageOut
from service.api.schemas.trials import AttemptOut, TrialOut
from service.db import jobs, trials
from service.db.trials import StoredTrial
from service.standing import baseline_of, main_device, named_readings, standing
from workers.job import JobSpec

router = APIRouter(tags=["trials"])


def stored_baseline(session: Any, job_id: str, fidelity: Fidelity) -> Measurement | None:
    """Return the dense model's measurement at a rung; None before it was taken.

    The dense model is the first thing measured at every rung, so one row is enough.
    """
    first = trials.page(session, job_id, limit=1, fidelity=fidelity).items
    return baseline_of([stored.trial for stored in first], fidelity)


def trial_out(spec: JobSpec, stored: StoredTrial, baseline: Measurement | None) -> TrialOut:
    """Return a stored trial as it is answered.

    Args:
        spec: Its job.
        stored: The trial.
        baseline: The dense model at the same rung; None before it was measured.
    """
    trial = stored.trial
    stands = standing(spec, trial, baseline)
    failed = isinstance(trial.outcome, Failed | Infeasible)
    return TrialOut.model_validate(
        {
            "id": trial.id,
            "job_id": stored.job_id,
            "number": trial.number,
            "state": trial.state,
            "fidelity": trial.fidelity,
            "agent": trial.agent,
            "base": trial.base,
            "preparation": trial.preparation.to_json() if trial.preparation else None,
            "plan_digest": stored.plan_digest,
            "plan": dict(stored.plan),
            "feasible": None if trial.agent == BASELINE_AGENT else stands.feasible,
            "violations": {} if trial.agent == BASELINE_AGENT else dict(stands.violations),
            "readings": named_readings(stored.readings, main_device(spec)),
            "found": dict(trial.outcome.found) if isinstance(trial.outcome, Measured) else {},
            "failure": outcome_to_json(trial.outcome) if failed and trial.outcome else None,
            "remembered": stored.remembered,
            "attempts": [
                AttemptOut(
                    id=attempt.id,
                    epoch=attempt.epoch,
                    state=attempt.state,
                    reason=attempt.reason,
                    seconds=dict(attempt.seconds),
                    started_at=attempt.started_at,
                    ended_at=attempt.ended_at,
                )
                for attempt in stored.attempts
            ],
            "artifacts": dict(stored.artifact_ids),
            "proposed_at": stored.proposed_at,
            "finished_at": stored.finished_at,
        }
    )


@router.get("/jobs/{job_id}/trials")
def list_trials(
    job_id: str,
    parts: ServicesDep,
    who: PrincipalDep,
    cursor: Cursor = None,
    limit: Limit = 100,
    state: TrialState | None = None,
    fidelity: Fidelity | None = None,
) -> PageOut[TrialOut]:
    """List a job's trials in the order of proposal, the dense model's measurements among them."""
    with parts.database.read() as session:
        spec = JobSpec.from_json(jobs.get(session, job_id).spec)
        page = trials.page(
            session, job_id, cursor=cursor, limit=limit, state=state, fidelity=fidelity
        )
        rungs = {stored.trial.fidelity for stored in page.items}
        baselines = {rung: stored_baseline(session, job_id, rung) for rung in rungs}
    data = [trial_out(spec, item, baselines[item.trial.fidelity]) for item in page.items]
    return PageOut(data=data, has_more=page.next_cursor is not None, next_cursor=page.next_cursor)


@router.get("/trials/{trial_id}", response_model=TrialOut)
def get_trial(
    trial_id: str, request: Request, response: Response, parts: ServicesDep, who: PrincipalDep
) -> Response:
    """Return a trial."""
    with parts.database.read() as session:
        stored = trials.get(session, trial_id)
        spec = JobSpec.from_json(jobs.get(session, stored.job_id).spec)
        baseline = stored_baseline(session, stored.job_id, stored.trial.fidelity)
    return conditional(request, response, trial_out(spec, stored, baseline))
