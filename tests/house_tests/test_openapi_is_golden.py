"""The API's document is under review: a change of it is a change for every client."""

from __future__ import annotations

import json

from openapi_spec_validator import validate

from service.openapi import golden_text
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "openapi.json"


def test_the_document_is_the_reviewed_one() -> None:
    assert golden_text() == GOLDEN.read_text(), (
        "The API changed. Look at the difference; if it is meant: "
        "python -m service.openapi > tests/golden/openapi.json"
    )


def test_the_document_is_valid_openapi() -> None:
    validate(json.loads(GOLDEN.read_text()))


def test_every_operation_documents_its_refusals() -> None:
    document = json.loads(GOLDEN.read_text())
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert operations
    for operation in operations:
        assert "application/problem+json" in operation["responses"]["default"]["content"]
        assert operation.get("summary")
