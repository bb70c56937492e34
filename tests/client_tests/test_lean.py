"""The client stays light: HTTP only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import paretopress

ALLOWED = {"httpx", "pydantic", "typer", "rich", "paretopress"}


def test_the_client_imports_only_its_four_packages_and_the_standard_library() -> None:
    files = sorted(Path(paretopress.__file__).parent.glob("**/*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                assert top in ALLOWED | sys.stdlib_module_names, f"{file.name} imports {name}"


def test_importing_the_client_loads_none_of_the_server() -> None:
    heavy = ["torch", "ray", "numpy", "fastapi", "sqlalchemy", "service", "workers", "search"]
    code = (
        f"import paretopress, paretopress.cli, sys; print([n for n in {heavy} if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
