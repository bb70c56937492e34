"""A posted job against what is stored: its specification, and what is known before it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from compression.errors import PlanInvalid
from compression.surveyed import Survey
from search.measurement import Measurement, Reading
from service.api.deps import Services
from service.api.models import refuse_unready
from service.api.schemas.jobs import JobCreate
from service.data_fit import DatasetFacts
from service.db import baselines, datasets, durations, models
from service.db.errors import NotFound
from service.dry_run import DryRun, dry_run, known_baseline
from service.errors import Fault, SpecInvalid
from service.job_spec import Materials, build_job_spec, left_out
from workers.job import JobSpec

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """A job that could be stored, and what is known of it."""

    spec: JobSpec
    preview: DryRun


def _named(pointer: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except NotFound as error:
        raise SpecInvalid.of([Fault(pointer, str(error))]) from error


def take_in(parts: Services, request: JobCreate, job_id: str) -> Intake:
    """Return the job's specification and its preview.

    Args:
        parts: The process's parts.
        request: What was posted.
        job_id: Identifier the job will have.

    Raises:
        SpecInvalid: It contradicts itself, or names what does not exist.
        NotReady: Model or dataset is still being scanned.
        Rejected: Model or dataset was refused.
    """
    known, stored_devices = parts.devices(), parts.stored_devices()
    with parts.database.read() as session:
        model = _named("/model_id", lambda: models.get(session, request.model_id))
        dataset = _named("/dataset_id", lambda: datasets.get(session, request.dataset_id))
        refuse_unready("model", model.id, model.state, model.problem)
        refuse_unready("dataset", dataset.id, dataset.state, dataset.problem)
        data = models.survey(session, model.id)
        earlier = durations.of_model(session, model.id, dataset.id)
        measured = [
            found
            for stored in stored_devices.values()
            if (
                found := baselines.get(
                    session,
                    model_id=model.id,
                    dataset_id=dataset.id,
                    fingerprint=stored.fingerprint,
                )
            )
        ]
    assert data is not None, f"model {model.id} is READY without a survey"
    survey = Survey.from_json(data)
    summary = dict(model.summary or {})
    stored_readings = [reading for found in measured for reading in found.readings]
    stored_readings += _scan_readings(summary)
    baseline = known_baseline(survey, stored_readings)
    facts = DatasetFacts.of(dataset.summary)
    materials = Materials(
        model=model.artifact,
        survey=survey,
        num_classes=model.artifact.num_classes or int(summary.get("num_classes") or 0),
        dataset=dataset.artifact,
        facts=facts,
        baseline=baseline,
        devices=known,
    )
    spec = build_job_spec(request, materials, parts.settings, job_id)
    try:
        preview = dry_run(
            spec,
            survey,
            baseline,
            forward_ms_per_image=summary.get("forward_ms_per_image"),
            split_images=facts.images,
            left_out=left_out(request, materials),
            earlier=earlier,
        )
    except PlanInvalid as error:
        raise SpecInvalid.of([Fault("/methods", str(error))]) from error
    return Intake(spec=spec, preview=preview)


def _scan_readings(summary: dict[str, Any]) -> list[Reading]:
    """Return what the model's scan timed; its values stand in until a job measures them."""
    found: list[dict[str, Any]] = list(summary.get("readings") or [])
    return list(Measurement.from_json(found).readings)
