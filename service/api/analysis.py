"""Analyses of a job: what is known of its model, site by site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from compression.decisions import decision_from_json
from compression.surveyed import Survey
from search.trial import Trial
from service.api.conditional import conditional
from service.api.deps import PrincipalDep, ServicesDep
from service.api.schemas.analysis import LayersOut
from service.db import fronts, jobs, models, sensitivity, trials
from service.db.sensitivity import ProfileKey, StoredProfile
from service.layer_analysis import curves, decisions_of, key_of, option_words, site_rows
from service.standing import provisional_front
from workers.job import JobSpec

router = APIRouter(prefix="/jobs", tags=["analysis"])

MAX_MEMBERS = 32


def _best(session: Any, job_id: str, spec: JobSpec, survey: Survey) -> tuple[Sequence[Trial], bool]:
    """Return the trials of the front, or the best so far, and whether they are provisional."""
    stored = fronts.latest(session, job_id)
    if stored is None:
        found = provisional_front(spec, survey, trials.everything(session, job_id))
        return (found.members or found.nearest)[:MAX_MEMBERS], True
    ids = [member.trial_id for member in stored.front.members]
    ids = ids or [str(point["trial_id"]) for point in stored.front.nearest]
    return [trials.get(session, trial_id).trial for trial_id in ids[:MAX_MEMBERS]], False


def _profile(stored: StoredProfile, survey: Survey) -> dict[str, Any]:
    found = stored.profile or {}
    sites = {(site.kind, site.name): site for site in survey.sites}
    left_out = []
    for row in found.get("left_out", ()):
        decision = decision_from_json(row["decision"])
        words = option_words(decision, sites.get(key_of(row["site"], decision)))
        left_out.append({"site": row["site"], "option": words, "reason": row["reason"]})
    return {
        "state": stored.state,
        "problem": stored.problem,
        **{name: found.get(name) for name in ("images", "temperature", "selector", "seconds")},
        "left_out": left_out,
        "measured_at": stored.updated_at if stored.state == "ready" else None,
    }


@router.get("/{job_id}/analysis/layers", response_model=LayersOut)
def get_layers(
    job_id: str, request: Request, response: Response, parts: ServicesDep, who: PrincipalDep
) -> Response:
    """Return how sensitive each site of the model is, and what the front decides there."""
    with parts.database.read() as session:
        job = jobs.get(session, job_id)
        spec = JobSpec.from_json(job.spec)
        found = models.survey(session, job.model_id)
        assert found is not None, f"job {job_id} has a model without a survey"
        survey = Survey.from_json(found)
        key = ProfileKey.of(spec.model, spec.dataset, job.model_id)
        stored = sensitivity.get(session, key)
        best, provisional = _best(session, job_id, spec, survey)
    measured = curves(survey, stored.profile)
    body = LayersOut.model_validate(
        {
            "job_id": job_id,
            "profile": _profile(stored, survey),
            "sites": site_rows(survey, measured, [trial.plan for trial in best]),
            "members": [
                {
                    "trial_id": trial.id,
                    "plan_digest": trial.plan.digest,
                    "fidelity": trial.fidelity,
                    "decisions": decisions_of(trial.plan, survey, measured),
                }
                for trial in best
            ],
            "provisional": provisional,
        }
    )
    return conditional(request, response, body)
