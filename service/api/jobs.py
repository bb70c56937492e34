"""Jobs: posted, watched, cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from search.errors import IllegalTransition
from search.trial import TrialState
from service.api.conditional import conditional
from service.api.deps import Cursor, Limit, PrincipalDep, ServicesDep, WaitDep, wait_until
from service.api.idempotency import OnceDep
from service.api.job_intake import Intake, take_in
from service.api.schemas.jobs import JobCreate, JobOut, JobPhase, JobProgress, JobSummary
from service.api.schemas.page import PageOut
from service.api.schemas.previews import PreviewOut
from service.db import jobs, trials
from service.db.columns import new_id
from service.db.jobs import StoredJob, Transition
from service.dry_run import refuse_unreachable
from service.errors import Fault, IllegalState, SpecInvalid
from service.job_state import ENDED, JobState
from service.standing import named_readings

router = APIRouter(prefix="/jobs", tags=["jobs"])

Counts = Mapping[TrialState, int]


def _progress(stored: StoredJob, counts: Counts) -> JobProgress:
    return JobProgress(
        trials=stored.spent.trials,
        budget_trials=stored.spec["budget"]["trials"],
        by_state=dict(counts),
        wall_s=stored.spent.wall_s,
        device_s=stored.spent.device_s,
    )


def _phases(moves: list[Transition]) -> list[JobPhase]:
    ends = [move.at for move in moves[1:]]
    return [
        JobPhase(
            state=move.after,
            reason=move.reason,
            since=move.at,
            seconds=(ends[index] - move.at).total_seconds() if index < len(ends) else None,
        )
        for index, move in enumerate(moves)
    ]


def job_out(stored: StoredJob, counts: Counts, moves: list[Transition], warm: int) -> JobOut:
    """Return a stored job as it is answered; `warm` is how many trials it began with."""
    path = f"/api/v1/jobs/{stored.id}"
    # Where the operator keeps users' code is the operator's business.
    spec = {key: value for key, value in stored.spec.items() if key != "code_dir"}
    return JobOut(
        id=stored.id,
        name=stored.name,
        state=stored.state,
        outcome=stored.outcome,
        problem=None if stored.problem is None else dict(stored.problem),
        model_id=stored.model_id,
        dataset_id=stored.dataset_id,
        labels=dict(stored.labels),
        created_at=stored.created_at,
        started_at=stored.started_at,
        ended_at=stored.ended_at,
        spec=spec,
        progress=_progress(stored, counts),
        warm_trials=warm,
        phases=_phases(moves),
        links={
            "self": path,
            "trials": f"{path}/trials",
            "front": f"{path}/front",
            "events": f"{path}/events",
            "layers": f"{path}/analysis/layers",
        },
    )


def _answer(session: Any, stored: StoredJob) -> JobOut:
    counts = trials.counts(session, [stored.id])[stored.id]
    moves = list(jobs.transitions(session, stored.id))
    return job_out(stored, counts, moves, trials.warm(session, stored.id))


def preview_out(intake: Intake) -> PreviewOut:
    """Return a dry run as it is answered."""
    found = intake.preview
    spec = {key: value for key, value in intake.spec.to_json().items() if key != "code_dir"}
    return PreviewOut.model_validate(
        {
            "spec": spec,
            "space": {
                "size": str(found.space.size),
                "knobs": found.space.to_json()["knobs"],
                "frozen": [site.to_json() for site in found.frozen],
            },
            "baseline": named_readings(found.baseline.readings),
            "reachable": found.region_json(),
            "constraints": [verdict.to_json() for verdict in found.verdicts],
            "would_be_accepted": all(v.reachable != "no" for v in found.verdicts),
            "warnings": found.warnings,
            "forecast": found.forecast.to_json(),
        }
    )


@router.post(
    "",
    status_code=202,
    response_model=JobOut,
    responses={200: {"model": PreviewOut, "description": "Dry run: nothing is stored"}},
)
def create_job(
    once: OnceDep,
    parts: ServicesDep,
    body: JobCreate,
    dry_run: Annotated[
        bool, Query(description="Answer what is known of it; store nothing")
    ] = False,
) -> JSONResponse:
    """Queue a job, or tell with `dry_run=true` what is known of it before it runs."""
    if dry_run:
        preview = preview_out(take_in(parts, body, "job_preview"))
        return JSONResponse(preview.model_dump(mode="json"))
    digest = once.digest(body.model_dump_json())
    if (earlier := once.earlier(digest)) is not None:
        return earlier
    job_id = new_id("job")
    intake = take_in(parts, body, job_id)
    refuse_unreachable(intake.preview)

    def create(session: Any) -> tuple[JobOut, Mapping[str, str]]:
        stored = jobs.create(
            session,
            name=body.name,
            model_id=body.model_id,
            dataset_id=body.dataset_id,
            spec=intake.spec.to_json(),
            request=body.model_dump(mode="json", exclude_unset=True),
            labels=body.labels,
            seed=body.seed,
            job_id=job_id,
        )
        moves = list(jobs.transitions(session, job_id))
        return job_out(stored, {}, moves, 0), {"Location": f"/api/v1/jobs/{job_id}"}

    return once.answer(digest, 202, create)


def _labels(given: list[str]) -> dict[str, str]:
    labels = {}
    for text in given:
        key, colon, value = text.partition(":")
        if not colon or not key:
            message = f"label is {text!r}; it must be of the form key:value"
            raise SpecInvalid.of([Fault("#query/label", message)])
        labels[key] = value
    return labels


@router.get("")
def list_jobs(
    parts: ServicesDep,
    who: PrincipalDep,
    cursor: Cursor = None,
    limit: Limit = 50,
    state: JobState | None = None,
    label: Annotated[list[str] | None, Query(description="`key:value`; all must match")] = None,
) -> PageOut[JobSummary]:
    """List jobs, newest first."""
    with parts.database.read() as session:
        page = jobs.page(
            session, cursor=cursor, limit=limit, state=state, labels=_labels(label or [])
        )
        counts = trials.counts(session, [job.id for job in page.items])
    data = [
        JobSummary(
            id=job.id,
            name=job.name,
            state=job.state,
            outcome=job.outcome,
            model_id=job.model_id,
            dataset_id=job.dataset_id,
            labels=dict(job.labels),
            created_at=job.created_at,
            progress=_progress(job, counts[job.id]),
        )
        for job in page.items
    ]
    return PageOut(data=data, has_more=page.next_cursor is not None, next_cursor=page.next_cursor)


@router.get("/{job_id}", response_model=JobOut)
def get_job(
    job_id: str,
    request: Request,
    response: Response,
    parts: ServicesDep,
    who: PrincipalDep,
    wait: WaitDep,
) -> Response:
    """Return a job; `Prefer: wait=n` waits until it has ended."""

    def load() -> JobOut:
        with parts.database.read() as session:
            return _answer(session, jobs.get(session, job_id))

    found = wait_until(parts, response, wait, load, lambda job: job.state in ENDED)
    return conditional(request, response, found)


@router.post("/{job_id}:cancel")
def cancel_job(job_id: str, parts: ServicesDep, who: PrincipalDep) -> JobOut:
    """Ask for a job's end; what was measured stays. Asking again changes nothing."""
    with parts.database.write() as session:
        try:
            stored = jobs.request_cancel(session, job_id)
        except IllegalTransition as error:
            state = jobs.get(session, job_id).state
            raise IllegalState(
                f"Job {job_id} is {state}; only a job that has not ended can be cancelled",
                extra={"state": state},
            ) from error
        return _answer(session, stored)
