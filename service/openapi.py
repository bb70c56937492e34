"""Process: prints the API's OpenAPI document.

Regenerate the golden file with `python -m service.openapi > tests/golden/openapi.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from service.app import create_app
from service.settings import Settings


def golden_text() -> str:
    """Return the document as text: sorted, indented, without this build's version."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(data_dir=Path(folder)))
        document = app.openapi()
    document["info"]["version"] = "0"
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(golden_text())
