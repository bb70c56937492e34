"""The OpenAPI document: FastAPI's, with problem documents instead of its own errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.errors import KINDS, MEDIA_TYPE
from service.api.schemas.datasets import DatasetCreate
from service.api.schemas.models import ModelCreate
from service.api.schemas.problem import ProblemDocument

REFERENCE = "#/components/schemas/{model}"


def document(app: FastAPI) -> dict[str, Any]:
    """Return the app's OpenAPI document; made once."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    found = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for kind in (ProblemDocument, ModelCreate, DatasetCreate):
        schema = kind.model_json_schema(ref_template=REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    refusal = {
        "description": "A problem document; "
        + ", ".join(sorted({f"/problems/{kind.slug}" for kind in KINDS.values()})),
        "content": {MEDIA_TYPE: {"schema": {"$ref": REFERENCE.format(model="ProblemDocument")}}},
    }
    for operations in found["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = refusal
    _describe_specs(found)
    app.openapi_schema = found
    return found


def _describe_specs(found: dict[str, Any]) -> None:
    """Say what the JSON part of a multipart body holds."""
    for path, kind in (("/api/v1/models", ModelCreate), ("/api/v1/datasets", DatasetCreate)):
        content = found["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        found["components"]["schemas"][name]["properties"]["spec"] |= {
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": REFERENCE.format(model=kind.__name__)},
        }
