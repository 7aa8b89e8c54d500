"""Paths for people and machines that operate the server: health, metrics, API documentation and the playground."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from service.telemetry.metrics import Metrics
from service.transport.http.endpoint import Endpoint
from service.transport.http.openapi import openapi_document
from service.transport.http.responses import json_response, readiness_response
from service.transport.tensor_codec import LOCK_PAUSE_S
from service.version import installed_version

PLAYGROUND = files("service.transport.http.playground")
# The files of the page by path; scripts import one another by relative paths.
PLAYGROUND_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    **{
        f"/page/{script.name}": (f"page/{script.name}", "text/javascript")
        for script in sorted(PLAYGROUND.joinpath("page").iterdir(), key=lambda script: script.name)
        if script.name.endswith(".js")
    },
}
# The page has no inline script, loads nothing from other hosts and sends nothing to them. Images come from the user
# (blob:) and from responses (data:).
PLAYGROUND_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a newer server may have a newer page
}


class Operators:
    """Handlers of the operators' paths.

    Args:
        endpoint: gives the catalog of models.
        metrics: exposed at /metrics.
    """

    def __init__(self, endpoint: Endpoint, metrics: Metrics) -> None:
        self._catalog, self._metrics = endpoint.predictor.catalog, metrics
        self._scrape_thread = ThreadPoolExecutor(1, "scrape")
        # Expositions in progress, by content type: scrapes that arrive meanwhile share the result.
        self._scrapes: dict[str, asyncio.Future[bytes]] = {}

    def routes(self) -> list[Route]:
        """Return the operators' routes."""
        return [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._exposition),
            Route("/docs", self._docs),
            Route("/openapi.json", self._openapi),
            *(Route(path, self._playground) for path in PLAYGROUND_FILES),
        ]

    async def _healthz(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _readyz(self, request: Request) -> Response:
        why, not_served = self._catalog.not_ready_because(), self._catalog.problems()
        return readiness_response({"ready": why is None, "reason": why, "not_served": not_served})

    async def _exposition(self, request: Request) -> Response:
        pieces, content_type = self._metrics.exposition(request.headers.get("accept", ""))
        if (scrape := self._scrapes.get(content_type)) is None:
            scrape = asyncio.get_running_loop().run_in_executor(self._scrape_thread, _join_slowly, pieces)
            self._scrapes[content_type] = scrape
            scrape.add_done_callback(lambda _: self._scrapes.pop(content_type))
        return Response(await asyncio.shield(scrape), headers={"content-type": content_type})

    async def _openapi(self, request: Request) -> Response:
        return json_response(openapi_document(installed_version(), self._catalog.model_names()))

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(PLAYGROUND.joinpath("docs.html").read_text())

    async def _playground(self, request: Request) -> Response:
        file, media_type = PLAYGROUND_FILES[request.url.path]
        return Response(PLAYGROUND.joinpath(file).read_text(), media_type=media_type, headers=PLAYGROUND_HEADERS)


def _join_slowly(pieces: Iterator[bytes]) -> bytes:
    """Join pieces, and release the interpreter's lock after each, so that the event loop waits for one at most."""
    text = bytearray()
    for piece in pieces:
        text += piece
        time.sleep(LOCK_PAUSE_S)
    return bytes(text)
