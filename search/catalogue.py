"""The agents by name. Adding one is one file and one line here."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from search.agent import Agent
from search.errors import ProblemInvalid
from search.problem import Problem

AGENTS: Mapping[str, str] = {
    "auto": "search.agents.auto:Auto",
    "uniform": "search.agents.uniform:Uniform",
    "random": "search.agents.random:Random",
    "tpe": "search.agents.tpe:Tpe",
    "nsga2": "search.agents.nsga2:Nsga2",
    "cbo": "search.agents.cbo:Cbo",
    "metapruning": "search.agents.metapruning:Metapruning",
    "autocompress": "search.agents.autocompress:Autocompress",
    "amc": "search.agents.amc:Amc",
    "nsga3": "search.agents.nsga3:Nsga3",
    "gp": "search.agents.gp:Gp",
    "fastnas": "search.agents.fastnas:Fastnas",
    "knapsack": "search.agents.knapsack:Knapsack",
    "netadapt": "search.agents.netadapt:Netadapt",
    "cmaes": "search.agents.cmaes:Cmaes",
    "tas": "search.agents.tas:Tas",
}
"""Name to `module:class`; loaded when asked for, so that listing names stays light.

An agent class has: a docstring whose first line is its summary, an `Options` frozen dataclass as
class attribute `options_type`, and the constructor `(problem: Problem, options: Options)`. Its
module imports torch, botorch or optuna inside functions only.
"""

DEFAULT = "auto"
"""Who searches where a job names nobody."""


def _load(name: str) -> Any:
    if name not in AGENTS:
        raise ProblemInvalid(f"Unknown agent {name!r}; known: {', '.join(AGENTS)}")
    module, _, attribute = AGENTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def options(name: str, given: Mapping[str, Any]) -> Any:
    """Return the validated options of an agent.

    Raises:
        ProblemInvalid: The agent or an option is unknown, or a value is out of range.
    """
    options_type = _load(name).options_type
    known = {field.name for field in dataclasses.fields(options_type)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ProblemInvalid(
            f"Agent {name!r} has no options {unknown}; known: {', '.join(sorted(known)) or 'none'}"
        )
    try:
        return options_type(**given)
    except TypeError as error:
        raise ProblemInvalid(f"Agent {name!r}: {error}") from error


def create(name: str, problem: Problem, given: Mapping[str, Any]) -> Agent:
    """Build an agent.

    Raises:
        ProblemInvalid: The agent or an option is unknown, or a value is out of range.
    """
    agent: Agent = _load(name)(problem, options(name, given))
    return agent


def describe() -> list[dict[str, Any]]:
    """Return name, summary, whole docstring and options of every agent, for the API."""
    listing = []
    for name in AGENTS:
        agent_type = _load(name)
        fields = dataclasses.fields(agent_type.options_type)
        defaults = agent_type.options_type()
        listing.append(
            {
                "name": name,
                "summary": agent_type.__doc__.strip().splitlines()[0],
                "default": name == DEFAULT,
                "options": {field.name: _plain(getattr(defaults, field.name)) for field in fields},
            }
        )
    return listing


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
