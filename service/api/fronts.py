"""The answer of a job: its front, and the best point under other bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from compression.surveyed import Survey
from search.errors import ProblemInvalid
from search.front import nearest
from search.measurement import Measured, Measurement
from search.objective import Constraint, Objective
from search.problem import Problem, best_first
from search.trial import BASELINE_AGENT, Fidelity, Trial
from service.api.conditional import conditional
from service.api.deps import PrincipalDep, ServicesDep
from service.api.schemas.trials import FrontOut, MemberOut, SelectIn, SelectOut
from service.api.trials import stored_baseline
from service.db import artifacts, events, fronts, jobs, models, trials
from service.db.events import StoredEvent
from service.db.fronts import StoredFront
from service.db.jobs import StoredJob
from service.errors import Fault, IllegalState, SpecInvalid
from service.job_spec import check_constraints, check_objective
from service.standing import main_device, named_readings, problem_at, provisional_front
from workers.job import JobSpec
from workers.ledger import RUNGS

router = APIRouter(prefix="/jobs", tags=["fronts"])


def _members(session: Any, found: tuple[Trial, ...], device: str | None) -> list[MemberOut]:
    roles = artifacts.ids(session, [trial.artifacts for trial in found])
    return [
        _member(trial.id, trial.plan.digest, _measured(trial), ids, device)
        for trial, ids in zip(found, roles, strict=True)
    ]


def _measured(trial: Trial) -> Measurement:
    assert isinstance(trial.outcome, Measured), f"{trial.id} is compared but not measured"
    return trial.outcome.measurement


def _member(
    trial_id: str,
    plan_digest: str,
    readings: Measurement,
    artifact_ids: Mapping[str, str],
    device: str | None,
) -> MemberOut:
    return MemberOut.model_validate(
        {
            "trial_id": trial_id,
            "plan_digest": plan_digest,
            "readings": named_readings(readings.readings, device),
            "artifacts": dict(artifact_ids),
        }
    )


def _near(point: Mapping[str, Any], device: str | None) -> MemberOut:
    """Return a stored near point; its readings may be stored as a list."""
    readings = point.get("readings") or []
    if not isinstance(readings, Mapping):
        readings = named_readings(Measurement.from_json(list(readings)).readings, device)
    return MemberOut.model_validate(
        {
            "trial_id": point["trial_id"],
            "plan_digest": point.get("plan_digest", ""),
            "readings": readings,
            "artifacts": dict(point.get("artifacts") or {}),
        }
    )


def _published(
    job: StoredJob, stored: StoredFront, device: str | None, rungs: StoredEvent | None
) -> FrontOut:
    front = stored.front
    return FrontOut.model_validate(
        {
            "job_id": job.id,
            "outcome": front.outcome or job.outcome,
            "provisional": False,
            "revision": stored.revision,
            "published_at": stored.published_at,
            "baseline": named_readings(front.baseline.readings, device),
            "hypervolume": front.hypervolume,
            "members": [
                _member(m.trial_id, m.plan_digest, m.readings, m.artifact_ids, device)
                for m in front.members
            ],
            "nearest": [_near(point, device) for point in front.nearest],
            "binding_constraints": [dict(row) for row in front.binding],
            "rank_correlation": rungs.payload["rank_correlation"] if rungs else {},
        }
    )


@router.get("/{job_id}/front", response_model=FrontOut)
def get_front(
    job_id: str, request: Request, response: Response, parts: ServicesDep, who: PrincipalDep
) -> Response:
    """Return the newest published front; before the first, a provisional one of search trials."""
    with parts.database.read() as session:
        job = jobs.get(session, job_id)
        spec = JobSpec.from_json(job.spec)
        device = main_device(spec)
        stored = fronts.latest(session, job_id)
        if stored is not None:
            body = _published(job, stored, device, events.newest(session, job_id, RUNGS))
        else:
            survey = models.survey(session, job.model_id)
            assert survey is not None, f"job {job_id} has a model without a survey"
            found = provisional_front(
                spec, Survey.from_json(survey), trials.everything(session, job_id)
            )
            known = found.baseline.readings if found.baseline else ()
            body = FrontOut.model_validate(
                {
                    "job_id": job_id,
                    "outcome": job.outcome,
                    "provisional": True,
                    "revision": None,
                    "published_at": None,
                    "baseline": named_readings(known, device),
                    "hypervolume": None,
                    "members": _members(session, found.members, device),
                    "nearest": _members(session, found.nearest, device),
                    "binding_constraints": [],
                    "rank_correlation": {},
                }
            )
    return conditional(request, response, body)


def _comparable(
    problem: Problem, found: list[Trial], constraints: tuple[Constraint, ...]
) -> list[Trial]:
    """Return the trials that have a reading for every bound and objective.

    Raises:
        SpecInvalid: There are trials, and none has a reading that a bound asks for.
    """
    faults = []
    for index, constraint in enumerate(constraints):
        if found and not any(constraint.reading(_measured(trial)) for trial in found):
            message = f"No confirmed point of this job has a reading of {constraint.key}"
            faults.append(Fault(f"/constraints/{index}", message))
    if faults:
        raise SpecInvalid.of(faults)
    kept = []
    for trial in found:
        try:
            problem.rank_key(trial)
        except ProblemInvalid:
            continue
        kept.append(trial)
    return kept


@router.post("/{job_id}:select")
def select_checkpoint(
    job_id: str, body: SelectIn, parts: ServicesDep, who: PrincipalDep
) -> SelectOut:
    """Return the best confirmed point under other bounds, from what is already measured."""
    known = parts.devices()
    with parts.database.read() as session:
        job = jobs.get(session, job_id)
        spec = JobSpec.from_json(job.spec)
        baseline = stored_baseline(session, job_id, Fidelity.CONFIRMED)
        if baseline is None:
            raise IllegalState(
                f"Job {job_id} is {job.state} and has no confirmed points yet",
                extra={"state": job.state},
            )
        constraints = check_constraints(body.constraints, known, baseline, parts.settings)
        objectives: tuple[Objective, ...] = spec.objectives
        if body.objective is not None:
            objectives = (check_objective(body.objective, known),)
        survey = models.survey(session, job.model_id)
        assert survey is not None, f"job {job_id} has a model without a survey"
        problem = dataclasses.replace(
            problem_at(spec, Survey.from_json(survey), baseline, Fidelity.CONFIRMED),
            constraints=constraints,
            objectives=objectives,
        )
        confirmed = [
            trial
            for trial in trials.everything(session, job_id)
            if trial.fidelity is Fidelity.CONFIRMED
            and trial.agent != BASELINE_AGENT
            and isinstance(trial.outcome, Measured)
        ]
        comparable = _comparable(problem, confirmed, constraints)
        within = [t for t in best_first(problem, comparable) if problem.feasible(_measured(t))]
        near = [] if within else nearest(problem, comparable)
        device = main_device(spec)
        best = _members(session, tuple(within[:1]), device)
        return SelectOut(
            selected=best[0] if best else None,
            considered=len(confirmed),
            feasible=len(within),
            nearest=_members(session, tuple(near), device),
        )
