"""An agent's file says which algorithm it is, and where it departs from the paper."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from search.catalogue import AGENTS
from tests.conftest import ROOT

FILES = {
    name: ROOT / (target.partition(":")[0].replace(".", "/") + ".py")
    for name, target in AGENTS.items()
}


@pytest.mark.parametrize("name", AGENTS)
def test_the_module_docstring_has_both_headings(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text())) or ""
    lines = [line.strip() for line in docstring.splitlines()]
    for heading in ("Reference:", "Deviations:"):
        assert heading in lines, f"{FILES[name].name} lacks the heading {heading!r}"
        assert lines[lines.index(heading) + 1], f"{FILES[name].name}: {heading} says nothing"


def test_every_agent_file_is_in_the_catalogue() -> None:
    there = {path.resolve() for path in (ROOT / "search" / "agents").glob("*.py")}
    listed = {Path(path).resolve() for path in FILES.values()}
    assert there - {ROOT / "search" / "agents" / "__init__.py"} >= listed
    classes = {
        path.stem
        for path in there
        if any(
            isinstance(node, ast.ClassDef) and node.name == "Options"
            for node in ast.parse(path.read_text()).body
        )
    }
    assert classes == {path.stem for path in listed}
