"""Whether the process lives, and whether it can serve."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.deps import ServicesDep
from service.api.schemas.catalogue import HealthOut

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> HealthOut:
    """Say that the process lives; touches nothing else."""
    return HealthOut(status="ok")


@router.get("/readyz")
def readyz(parts: ServicesDep) -> HealthOut:
    """Say that the database answers; a server that cannot reach it answers 503."""
    parts.database.ping()
    return HealthOut(status="ok", checks={"database": "ok"})
