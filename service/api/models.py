"""Models: uploaded, checked by their headers here, loaded and surveyed by a worker."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from compression.artifact import Digest, ModelArtifact, ModelFormat, Preprocessing
from compression.models.declaration import check_declaration
from compression.models.formats import check_weights
from compression.models.names import ONNX_NAME, is_user_code
from compression.models.onnx_header import declared_shape, read_onnx_header
from compression.surveyed import Survey
from service.api.conditional import conditional
from service.api.deps import Cursor, Limit, PrincipalDep, ServicesDep, WaitDep, wait_until
from service.api.idempotency import OnceDep
from service.api.incoming import FilePart, SpecPart, landed, parse_spec
from service.api.schemas.models import ModelCreate, ModelOut, SurveyOut
from service.api.schemas.page import PageOut
from service.db import models
from service.db.models import StoredModel
from service.errors import CodeNotAllowed, Fault, NotReady, Rejected, SpecInvalid
from service.scan_state import ScanState
from service.settings import Settings

router = APIRouter(prefix="/models", tags=["models"])


def artifact_of(
    spec: ModelCreate, digest: str | None, settings: Settings, file: Path | None = None
) -> ModelArtifact:
    """Return what is stored of a declared model.

    Args:
        spec: What was declared.
        digest: Of the weights file; None without one.
        settings: Whether users' code may be named.
        file: The weights, once they landed; an ONNX file says its input's shape where the spec
            does not.

    Raises:
        CodeNotAllowed: It names Python code and the server has no code folder.
        SpecInvalid: Weights are missing, or not wanted.
        ModelRefused: Architecture, shape or preprocessing make no sense.
    """
    architecture = spec.architecture.python or spec.architecture.name or ""
    is_code = spec.architecture.python is not None or is_user_code(architecture)
    if is_code and settings.code_dir is None:
        raise CodeNotAllowed(
            f"The model names Python code ({architecture!r}); start the server with "
            "`paretopress serve --code DIR` to let models be built from code in DIR",
            [Fault("/spec/architecture", "names Python code")],
        )
    if spec.architecture.python is not None and not is_user_code(architecture):
        message = f"python is {architecture!r}; it must be of the form 'package.module:builder'"
        raise SpecInvalid.of([Fault("/spec/architecture/python", message)])
    form: ModelFormat = spec.format or _usual_format(architecture, digest)
    if form == "python" and not is_code:
        message = (
            f"format 'python' needs architecture.python; {architecture!r} is a registered name"
        )
        raise SpecInvalid.of([Fault("/spec/format", message)])
    if digest is None and form != "python":
        raise SpecInvalid.of(
            [Fault("/weights", f"A model of format {form!r} needs the file part 'weights'")]
        )
    artifact = ModelArtifact(
        weights=None if digest is None else Digest(digest),
        format=form,
        architecture=architecture,
        options=dict(spec.architecture.options),
        input_shape=spec.input_shape or _shape_of_file(spec, form, file),
        preprocessing=Preprocessing(
            layout=spec.preprocessing.layout,
            scale=spec.preprocessing.scale,
            mean=tuple(spec.preprocessing.mean),
            std=tuple(spec.preprocessing.std),
        ),
        task=spec.task,
        num_classes=spec.num_classes,
    )
    check_declaration(artifact)
    return artifact


def _usual_format(architecture: str, digest: str | None) -> ModelFormat:
    if architecture == ONNX_NAME:
        return "onnx"
    return "python" if is_user_code(architecture) and digest is None else "safetensors"


def _shape_of_file(spec: ModelCreate, form: ModelFormat, file: Path | None) -> tuple[int, int, int]:
    if form != "onnx":
        raise SpecInvalid.of([Fault("/spec/input_shape", "input_shape [C, H, W] is required")])
    if file is None:
        # The rest of the spec can be judged before the file landed.
        return max(len(spec.preprocessing.mean), len(spec.preprocessing.std)), 1, 1
    check_weights(file, form)
    with file.open("rb") as stream:
        return declared_shape(read_onnx_header(stream, file.stat().st_size))


def model_out(stored: StoredModel) -> ModelOut:
    """Return a stored model as it is answered."""
    artifact = stored.artifact.to_json()
    found = dict(stored.summary or {})
    return ModelOut(
        id=stored.id,
        name=stored.name,
        state=stored.state,
        problem=None if stored.problem is None else dict(stored.problem),
        architecture=stored.artifact.architecture,
        options=artifact["options"],
        format=stored.artifact.format,
        input_shape=stored.artifact.input_shape,
        preprocessing=artifact["preprocessing"],
        task=stored.artifact.task,
        num_classes=stored.artifact.num_classes or int(found.get("num_classes") or 0),
        weights_sha256=stored.artifact.weights,
        summary=None if stored.summary is None else found,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        links={
            "self": f"/api/v1/models/{stored.id}",
            "survey": f"/api/v1/models/{stored.id}/survey",
        },
    )


def refuse_unready(
    kind: str, thing_id: str, state: ScanState, problem: Mapping[str, Any] | None
) -> None:
    """Refuse to use what is still being scanned, or was rejected.

    Raises:
        NotReady: Its scan goes on; try again.
        Rejected: Its scan refused it; the reason is inside.
    """
    if state is ScanState.SCANNING:
        raise NotReady(f"The {kind} {thing_id} is still being scanned; try again in a moment")
    if state is ScanState.REJECTED:
        reason = dict(problem or {})
        raise Rejected(
            f"The {kind} {thing_id} was refused: {reason.get('detail') or reason.get('title')}",
            extra={"rejection": reason},
        )


@router.post("", status_code=202, response_model=ModelOut)
def create_model(
    once: OnceDep, parts: ServicesDep, spec: SpecPart, weights: FilePart = None
) -> JSONResponse:
    """Register a model; its weights are checked by their header now, and loaded by a worker."""
    wanted = parse_spec(ModelCreate, spec)
    settings = parts.settings
    # Cheap faults first: a large file need not land to be told that its architecture is unknown.
    artifact_of(wanted, None if weights is None else "0" * 64, settings)
    with ExitStack() as stack:
        file = None
        if weights is not None:
            file = stack.enter_context(
                landed(weights, settings.incoming_dir, settings.max_upload_bytes)
            )
        artifact = artifact_of(
            wanted,
            file.sha256 if file else None,
            settings,
            file.path if file else None,
        )
        digest = once.digest(wanted.model_dump_json(), file.sha256 if file else "")
        if (earlier := once.earlier(digest)) is not None:
            return earlier
        if file is not None:
            check_weights(file.path, artifact.format)
            parts.store.put_file(file.path)

        def create(session: Any) -> tuple[ModelOut, Mapping[str, str]]:
            stored = models.create(session, name=wanted.name, artifact=artifact)
            return model_out(stored), {"Location": f"/api/v1/models/{stored.id}"}

        return once.answer(digest, 202, create)


@router.get("")
def list_models(
    parts: ServicesDep, who: PrincipalDep, cursor: Cursor = None, limit: Limit = 50
) -> PageOut[ModelOut]:
    """List models, newest first."""
    with parts.database.read() as session:
        page = models.page(session, cursor=cursor, limit=limit)
    data = [model_out(stored) for stored in page.items]
    return PageOut(data=data, has_more=page.next_cursor is not None, next_cursor=page.next_cursor)


@router.get("/{model_id}", response_model=ModelOut)
def get_model(
    model_id: str,
    request: Request,
    response: Response,
    parts: ServicesDep,
    who: PrincipalDep,
    wait: WaitDep,
) -> Response:
    """Return a model; `Prefer: wait=n` waits until its scan has ended."""

    def load() -> StoredModel:
        with parts.database.read() as session:
            return models.get(session, model_id)

    stored = wait_until(
        parts, response, wait, load, lambda found: found.state is not ScanState.SCANNING
    )
    return conditional(request, response, model_out(stored))


@router.get("/{model_id}/survey")
def get_survey(model_id: str, parts: ServicesDep, who: PrincipalDep) -> SurveyOut:
    """Return the sites of a model: what `methods.freeze` may name, and what is frozen and why."""
    with parts.database.read() as session:
        stored = models.get(session, model_id)
        data = models.survey(session, model_id)
    refuse_unready("model", model_id, stored.state, stored.problem)
    assert data is not None
    survey = Survey.from_json(data)
    sites = [site.to_json() for site in survey.sites]
    return SurveyOut.model_validate({"sites": sites, "summary": dict(survey.summary)})
