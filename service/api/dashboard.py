"""The dashboard's files, and the Plotly bundle that the plotly wheel ships."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.datastructures import Headers
from starlette.staticfiles import StaticFiles

from service.api.conditional import matches
from service.db.errors import NotFound

FOLDER = Path(__file__).resolve().parent.parent / "dashboard"

# Everything comes from this server; Plotly sets styles on elements and draws images from blobs.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


class DashboardFiles(StaticFiles):
    """Our own pages: always revalidated, so that an upgrade shows at once."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """See `StaticFiles`."""
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = POLICY
        return response


def plotly_bundle() -> Path | None:
    """Return the wheel's `plotly.min.js`, found without importing plotly; None without it."""
    found = importlib.util.find_spec("plotly")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path
    return None


@router.get("/")
def root() -> RedirectResponse:
    """Lead to the dashboard."""
    return RedirectResponse("/dashboard/")


@router.get("/dashboard/plotly.min.js")
def plotly(request: Request) -> Response:
    """Return Plotly's bundle; its tag is the wheel's version."""
    path = plotly_bundle()
    if path is None:
        raise NotFound("file", "plotly.min.js")
    etag = f'"plotly-{importlib.metadata.version("plotly")}"'
    headers = {"ETag": etag, "Cache-Control": "public, max-age=86400"}
    if matches(Headers(scope=request.scope).get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type="text/javascript", headers=headers)


def files() -> DashboardFiles:
    """Return the app that serves the dashboard's folder."""
    return DashboardFiles(directory=FOLDER, html=True)
