"""Answers as a server words them."""

from __future__ import annotations

from typing import Any

from paretopress.types import Front, JobInfo


def reading(metric: str, value: float, **more: Any) -> dict[str, Any]:
    low = more.pop("low", value)
    high = more.pop("high", value)
    return {"metric": metric, "value": value, "low": low, "high": high, "n": 1, **more}


def timed(value: float, ratio: float | None = None) -> dict[str, Any]:
    share = {"value": ratio, "low": ratio, "high": ratio} if ratio is not None else None
    place = {"device": "local/onnxruntime", "statistic": "p50", "unit": "ms"}
    return reading("latency_ms", value, low=value * 0.99, high=value * 1.01, ratio=share, **place)


def member(number: int, top1: float, latency_ms: float) -> dict[str, Any]:
    return {
        "trial_id": f"trl_{number}",
        "plan_digest": f"{number:064x}",
        "readings": {
            "top1": reading("top1", top1, low=top1 - 0.01, high=top1 + 0.01, split="test"),
            "latency_ms": timed(latency_ms, latency_ms / 2.0),
            "runtime_bytes": reading("runtime_bytes", 250_000.0),
        },
        "artifacts": {"checkpoint": f"art_{number}"},
    }


def front_data(**more: Any) -> dict[str, Any]:
    return {
        "job_id": "job_1",
        "outcome": "front_found",
        "provisional": False,
        "baseline": {"top1": reading("top1", 0.98), "latency_ms": timed(2.0)},
        "hypervolume": 0.4,
        "members": [member(1, 0.97, 0.8), member(2, 0.96, 0.5)],
        "nearest": [],
        "binding_constraints": [],
        **more,
    }


def front(**more: Any) -> Front:
    return Front.model_validate(front_data(**more))


CONSTRAINTS = [
    {
        "metric": "latency_ms",
        "statistic": "p50",
        "device": "local/onnxruntime",
        "at_most": 0.6,
        "at_least": None,
        "relative_to": "baseline",
    },
    {"metric": "runtime_bytes", "at_most": 300000.0, "at_least": None, "relative_to": None},
]


def job_data(**more: Any) -> dict[str, Any]:
    return {
        "id": "job_1",
        "name": "edge",
        "state": "RUNNING",
        "outcome": None,
        "problem": None,
        "spec": {"objectives": [{"metric": "top1"}], "constraints": CONSTRAINTS},
        "progress": {
            "trials": 3,
            "budget_trials": 12,
            "by_state": {"MEASURED": 4, "RUNNING": 2, "SOMETHING_NEW": 1},
            "wall_s": 65.0,
        },
        **more,
    }


def job(**more: Any) -> JobInfo:
    return JobInfo.model_validate(job_data(**more))
