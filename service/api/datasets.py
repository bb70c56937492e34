"""Datasets: uploaded or named, checked here as far as numpy goes, opened whole by a worker."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from compression.artifact import Digest
from service.api.conditional import conditional
from service.api.deps import Cursor, Limit, PrincipalDep, ServicesDep, WaitDep, wait_until
from service.api.idempotency import OnceDep
from service.api.incoming import FilePart, SpecPart, landed, parse_spec
from service.api.schemas.datasets import DatasetCreate, DatasetOut
from service.api.schemas.page import PageOut
from service.db import datasets
from service.db.datasets import StoredDataset
from service.errors import Fault, PathNotAllowed, SpecInvalid
from service.scan_state import ScanState
from service.settings import Settings
from workers.datasets.check import check_dataset
from workers.job import DatasetArtifact, Splits

router = APIRouter(prefix="/datasets", tags=["datasets"])


def artifact_of(spec: DatasetCreate, digest: str | None, settings: Settings) -> DatasetArtifact:
    """Return what is stored of a declared dataset.

    Args:
        spec: What was declared.
        digest: Of the data file; None without one.
        settings: Which folders the operator opened.

    Raises:
        SpecInvalid: The file is missing, or not wanted.
        PathNotAllowed: The path lies in no folder that the operator opened.
    """
    named = spec.format in ("builtin", "path")
    if named and digest is not None:
        message = f"A dataset of format {spec.format!r} takes no file"
        raise SpecInvalid.of([Fault("/data", message)])
    if not named and digest is None:
        message = f"A dataset of format {spec.format!r} needs the file part 'data'"
        raise SpecInvalid.of([Fault("/data", message)])
    if not named and spec.source is not None:
        message = f"source is for formats 'builtin' and 'path'; format is {spec.format!r}"
        raise SpecInvalid.of([Fault("/spec/source", message)])
    name = (spec.source or spec.name) if named else ""
    if spec.format == "path":
        name = str(_opened(name, settings))
    return DatasetArtifact(
        data=None if digest is None else Digest(digest),
        format=spec.format,
        name=name,
        splits=Splits(**spec.splits.model_dump()),
    )


def _opened(name: str, settings: Settings) -> Path:
    """Return a path on the server's disk, links followed, that lies in an opened folder."""
    path = Path(name).resolve()
    if not any(path.is_relative_to(root.resolve()) for root in settings.data_roots):
        raise PathNotAllowed(
            f"{name!r} lies in no folder whose data this server may read; its operator names them "
            "in PARETOPRESS_DATA_ROOTS",
            [Fault("/spec/source", "lies in no opened folder")],
        )
    return path


def dataset_out(stored: StoredDataset) -> DatasetOut:
    """Return a stored dataset as it is answered."""
    artifact = stored.artifact.to_json()
    return DatasetOut(
        id=stored.id,
        name=stored.name,
        state=stored.state,
        problem=None if stored.problem is None else dict(stored.problem),
        format=stored.artifact.format,
        source=stored.artifact.name,
        data_sha256=stored.artifact.data,
        splits=artifact["splits"],
        summary=None if stored.summary is None else dict(stored.summary),
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        links={"self": f"/api/v1/datasets/{stored.id}"},
    )


@router.post("", status_code=202, response_model=DatasetOut)
def create_dataset(
    once: OnceDep, parts: ServicesDep, spec: SpecPart, data: FilePart = None
) -> JSONResponse:
    """Register a dataset; what is wrong with its file is said now where that needs no decoding."""
    wanted = parse_spec(DatasetCreate, spec)
    settings = parts.settings
    artifact_of(wanted, None if data is None else "0" * 64, settings)
    with ExitStack() as stack:
        file = None
        if data is not None:
            file = stack.enter_context(
                landed(data, settings.incoming_dir, settings.max_upload_bytes)
            )
        artifact = artifact_of(wanted, file.sha256 if file else None, settings)
        digest = once.digest(wanted.model_dump_json(), file.sha256 if file else "")
        if (earlier := once.earlier(digest)) is not None:
            return earlier
        check_dataset(
            artifact,
            file.path if file else None,
            wanted.num_classes,
            input_shape=wanted.input_shape,
            layout=wanted.layout,
        )
        if file is not None:
            parts.store.put_file(file.path)

        def create(session: Any) -> tuple[DatasetOut, Mapping[str, str]]:
            stored = datasets.create(session, name=wanted.name, artifact=artifact)
            return dataset_out(stored), {"Location": f"/api/v1/datasets/{stored.id}"}

        return once.answer(digest, 202, create)


@router.get("")
def list_datasets(
    parts: ServicesDep, who: PrincipalDep, cursor: Cursor = None, limit: Limit = 50
) -> PageOut[DatasetOut]:
    """List datasets, newest first."""
    with parts.database.read() as session:
        page = datasets.page(session, cursor=cursor, limit=limit)
    data = [dataset_out(stored) for stored in page.items]
    return PageOut(data=data, has_more=page.next_cursor is not None, next_cursor=page.next_cursor)


@router.get("/{dataset_id}", response_model=DatasetOut)
def get_dataset(
    dataset_id: str,
    request: Request,
    response: Response,
    parts: ServicesDep,
    who: PrincipalDep,
    wait: WaitDep,
) -> Response:
    """Return a dataset; `Prefer: wait=n` waits until its scan has ended."""

    def load() -> StoredDataset:
        with parts.database.read() as session:
            return datasets.get(session, dataset_id)

    stored = wait_until(
        parts, response, wait, load, lambda found: found.state is not ScanState.SCANNING
    )
    return conditional(request, response, dataset_out(stored))
