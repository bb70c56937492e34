from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from search.catalogue import AGENTS, DEFAULT, create, describe, options
from search.errors import ProblemInvalid
from tests.synthetic import Net

HEAVY = ("torch", "optuna", "botorch", "gpytorch", "ray")


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_can_be_built_and_asked(name: str) -> None:
    (request,) = create(name, Net(d=4).problem(), {}).ask(1)
    assert Net(d=4).space.contains(request.plan)


def test_auto_is_the_default() -> None:
    assert type(create("auto", Net(d=4).problem(), {})) is type(
        create(DEFAULT, Net(d=4).problem(), {})
    )


def test_listing_loads_no_heavy_library() -> None:
    code = (
        "import sys; from search.catalogue import describe; describe();"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert answer.stdout.strip() == "[]"


def test_descriptions_are_for_users_and_for_json() -> None:
    listing = describe()
    assert [entry["name"] for entry in listing] == list(AGENTS)
    assert [entry["default"] for entry in listing].count(True) == 1
    assert all(entry["summary"].endswith(".") for entry in listing)
    assert json.loads(json.dumps(listing)) == listing


@pytest.mark.parametrize("name", AGENTS)
def test_options_are_frozen_and_documented(name: str) -> None:
    defaults = options(name, {})
    assert type(defaults).__dataclass_params__.frozen
    for field in dataclasses.fields(defaults):
        assert f"{field.name}:" in (type(defaults).__doc__ or "")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ProblemInvalid, match="Unknown agent 'oracle'; known: auto, uniform"):
        create("oracle", Net(d=4).problem(), {})
    with pytest.raises(ProblemInvalid, match=r"'tpe' has no options \['gamma'\]"):
        options("tpe", {"gamma": 1})
    with pytest.raises(ProblemInvalid, match="steps is 0"):
        options("cbo", {"steps": 0})
