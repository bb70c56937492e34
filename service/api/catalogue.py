"""What this server offers: metrics, devices, methods, agents, and itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import TypeAdapter

from compression.methods import MAX_LEVELS, PRIMITIVES, SELECTOR_NAMES, Methods
from compression.models.names import architectures
from search import catalogue
from search.device import DeviceSpec
from search.metric import METRICS
from service.api.deps import MAX_WAIT_S, ServicesDep, principal
from service.api.device_agents import agent_out
from service.api.schemas.catalogue import (
    AgentOut,
    AgentsOut,
    DeviceOut,
    MethodsOut,
    MetricOut,
    NamedOut,
    SystemOut,
)
from service.api.schemas.page import PageOut
from service.db import device_agents
from service.db.device_agents import StoredAgent
from service.db.devices import StoredDevice
from service.db.errors import NotFound
from service.job_spec import closest

router = APIRouter(tags=["catalogue"], dependencies=[Depends(principal)])

_JSON: TypeAdapter[Any] = TypeAdapter(Any)

NOTED = ("fastapi", "pydantic", "sqlalchemy", "torch", "onnxruntime", "ray", "optuna", "botorch")
"""Distributions whose versions matter to results; read from metadata, none is imported."""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@router.get("/metrics")
def list_metrics() -> PageOut[MetricOut]:
    """List every quantity that objectives and constraints may name."""
    return PageOut(
        data=[
            MetricOut(
                name=metric.name,
                unit=metric.unit,
                direction=metric.direction,
                timed=metric.timed,
                exact_before_trial=metric.by_cost_table,
                summary=metric.summary,
            )
            for metric in METRICS.values()
        ]
    )


def device_out(
    spec: DeviceSpec, stored: StoredDevice | None, agents: Sequence[StoredAgent] = ()
) -> DeviceOut:
    """Return a device as it is answered."""
    return DeviceOut(
        name=spec.name,
        runtime=spec.runtime,
        threads=spec.threads,
        batch=spec.batch,
        place=spec.place,
        hardware=dict(spec.hardware),
        fingerprint=stored.fingerprint if stored else None,
        seen_at=stored.seen_at if stored else None,
        agents=[agent_out(agent) for agent in agents if agent.device == spec.name],
    )


@router.get("/devices")
def list_devices(parts: ServicesDep) -> PageOut[DeviceOut]:
    """List devices that timed metrics may name; of a local one, threads and batch may be added.

    `local/openvino-2t-b32` is OpenVINO on this server with two threads and 32 inputs at once.
    """
    stored = parts.stored_devices()
    with parts.database.read() as session:
        agents = device_agents.everything(session)
    found = [device_out(s, stored.get(n), agents) for n, s in parts.devices().items()]
    return PageOut(data=found)


@router.get("/devices/{name:path}")
def get_device(name: str, parts: ServicesDep) -> DeviceOut:
    """Return a device; its name may contain a slash."""
    known = parts.devices()
    if name not in known:
        raise NotFound("device", f"{name}; {known.refusal(name) or closest(name, known)}")
    with parts.database.read() as session:
        agents = device_agents.everything(session)
    return device_out(known[name], parts.stored_devices().get(name), agents)


@router.get("/methods")
def list_methods() -> MethodsOut:
    """List primitives and channel criteria, with the limits of `methods` and its defaults."""
    default = Methods()
    return MethodsOut(
        primitives=[NamedOut(name=name, summary=text) for name, text in PRIMITIVES.items()],
        selectors=[NamedOut(name=name, summary=text) for name, text in SELECTOR_NAMES.items()],
        defaults={
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(default).items()
        },
        limits={
            "channel_multiple": {"min": 1, "max": 64},
            "min_keep_ratio": {"above": 0.0, "max": 1.0},
            "choices_per_site": {"max": MAX_LEVELS},
        },
    )


@router.get("/agents")
def list_agents() -> AgentsOut:
    """List the strategies that propose plans."""
    data = [AgentOut(**_JSON.dump_python(agent, mode="json")) for agent in catalogue.describe()]
    return AgentsOut(data=data, auto=catalogue.DEFAULT)


@router.get("/system")
def get_system(parts: ServicesDep) -> SystemOut:
    """Return versions, limits and what is switched on."""
    settings = parts.settings
    versions = {name: found for name in NOTED if (found := _version(name)) is not None}
    return SystemOut(
        name="ParetoPress",
        version=_version("paretopress") or "0",
        versions={"python": platform.python_version(), **versions},
        limits={
            "max_upload_bytes": settings.max_upload_bytes,
            "max_body_bytes": settings.max_body_bytes,
            "max_trials": settings.max_trials,
            "max_wall_s": settings.max_wall_s,
            "max_parallelism": settings.max_parallelism,
            "max_constraints": settings.max_constraints,
            "max_wait_s": MAX_WAIT_S,
        },
        features={
            "user_code": settings.code_dir is not None,
            "api_keys": settings.require_api_key,
        },
        architectures=list(architectures()),
    )
