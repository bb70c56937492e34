"""The API process: everything it is made of, put together. Loads neither torch nor ray."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from service.api import (
    analysis,
    artifacts,
    catalogue,
    dashboard,
    datasets,
    device_agents,
    errors,
    events,
    fronts,
    health,
    jobs,
    models,
    trials,
)
from service.api.deps import MAX_WAITERS, Services
from service.api.edge import Edge
from service.api.openapi_document import document
from service.db.session import Database
from service.settings import Settings
from workers.open_store import open_store

API = "/api/v1"
UPLOADS = frozenset({f"{API}/models", f"{API}/datasets"})
"""Paths whose bodies carry a file."""


def create_app(settings: Settings) -> FastAPI:
    """Return the API; the database is migrated when the app starts.

    Args:
        settings: What the operator set.
    """
    services = Services(
        settings=settings,
        database=Database(settings.database_url),
        store=open_store(settings.store_url),
        waiters=threading.BoundedSemaphore(MAX_WAITERS),
        streams=threading.BoundedSemaphore(settings.max_event_streams),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.database.migrate()
        yield
        services.database.close()

    app = FastAPI(
        title="ParetoPress",
        version=importlib.metadata.version("paretopress"),
        summary="Post a trained network and its hardware limits; pull compressed checkpoints.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.services = services
    errors.install(app)
    api = APIRouter(prefix=API)
    # Agents come before the catalogue, whose devices have names with slashes.
    parts = (models, datasets, jobs, trials, fronts, analysis, events, artifacts, device_agents)
    for part in (*parts, catalogue):
        api.include_router(part.router)
    app.include_router(api)
    app.include_router(health.router)
    app.include_router(dashboard.router)
    app.mount("/dashboard", dashboard.files(), name="dashboard")

    def max_body_bytes(method: str, path: str) -> int:
        if method == "POST" and path.rstrip("/") in UPLOADS:
            return settings.max_upload_bytes + settings.max_body_bytes
        if path.startswith(f"{API}/devices/orders/"):
            return device_agents.MAX_RESULT_BYTES
        return settings.max_body_bytes

    app.add_middleware(Edge, hosts=settings.hosts, max_body_bytes=max_body_bytes)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app
