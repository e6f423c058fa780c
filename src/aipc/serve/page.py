"""The chat page: its files as they lie in `static`, and what the page says to those who are no browser."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

# Windows' registry may call a script plain text, and then no browser runs it.
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FOLDER = files("aipc.serve") / "static"

routes = APIRouter(include_in_schema=False)


@routes.api_route("/", methods=["GET", "HEAD"])
async def home(request: Request) -> Response:
    """The page for a browser; for others what Ollama's clients ask first."""
    if "text/html" in request.headers.get("accept", ""):
        response = _file("index.html")
    else:
        response = Response("aipc is running", media_type="text/plain")
    response.headers["Vary"] = "Accept"
    return response


@routes.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static(name: str) -> Response:
    """One of the page's files."""
    return _file(name)


def _file(name: str) -> Response:
    """A file of the folder, by a name that is compared and never joined to a path."""
    found = next((file for file in _FOLDER.iterdir() if file.name == name), None)
    media_type = _MEDIA_TYPES.get(name[name.rfind(".") :])
    if found is None or media_type is None:
        raise HTTPException(404, "Not Found")
    # A newer release must not meet the scripts of an older one.
    return Response(found.read_bytes(), media_type=media_type, headers={"Cache-Control": "no-cache"})
