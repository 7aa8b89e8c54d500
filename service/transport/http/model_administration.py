"""Triton's extensions over REST: configuration, statistics and index of models; and the routes that are refused."""

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import InvalidRequest, TooLarge
from service.transport import extension_documents as documents
from service.transport.http.endpoint import Endpoint
from service.transport.http.responses import json_response

MAX_INDEX_BYTES = 16 * 2**10  # body of a request for the index
ANY_METHOD = ("GET", "POST")
MODEL = "/v2/models/{model}"
MEMORY_KINDS = ("/v2/systemsharedmemory", "/v2/cudasharedmemory")


class IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for the index of the repository; `ready` leaves out versions that are not ready."""

    ready: bool = False


class ModelAdministration:
    """Handlers of the extensions that describe models, and of the routes that this server refuses by name."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._catalog = endpoint, endpoint.predictor.catalog

    def routes(self) -> list[Route]:
        """Return the routes."""
        route = self._endpoint.route
        prefixes = (MODEL, MODEL + "/versions/{version}")
        return [
            route("/v2/models/stats", self._statistics),
            *(route(prefix + "/stats", self._statistics) for prefix in prefixes),
            *(route(prefix + "/config", self._config) for prefix in prefixes),
            route("/v2/repository/index", self._index, ["POST"]),
            *(route(kind + "/status", self._no_regions) for kind in MEMORY_KINDS),
            *(route(kind + "/region/{region}/status", self._no_regions) for kind in MEMORY_KINDS),
            *(route(path, partial(self._refuse, why=why), methods) for path, methods, why in _refused()),
        ]

    async def _config(self, request: Request, request_id: str) -> Response:
        configuration = self._catalog.configuration(*_named(request))
        return json_response(documents.config_document(configuration))

    async def _statistics(self, request: Request, request_id: str) -> Response:
        return json_response(documents.statistics_document(self._catalog.statistics(*_named(request))))

    async def _index(self, request: Request, request_id: str) -> Response:
        body = await self._endpoint.read_body(request, request_id)
        if len(body) > MAX_INDEX_BYTES:
            raise TooLarge(f"the body has {len(body)} bytes, the limit of this call is {MAX_INDEX_BYTES}")
        try:
            asked = msgspec.json.decode(body, type=IndexRequest) if body else IndexRequest()
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(f'the body must be empty or {{"ready": true or false}}: {error}') from None
        return json_response(documents.index_document(self._catalog.versions(), ready_only=asked.ready))

    async def _no_regions(self, request: Request, request_id: str) -> Response:
        documents.check_shared_memory_region(request.path_params.get("region", ""))
        return json_response([])

    async def _refuse(self, request: Request, request_id: str, why: str) -> Response:
        documents.refuse(why)


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _refused() -> list[tuple[str, tuple[str, ...], str]]:
    """Return the paths that are refused by name, with their methods and the reason."""
    loads = [f"/v2/repository/models/{{name}}/{verb}" for verb in ("load", "unload")]
    regions = [f"{kind}/region/{{region}}/{verb}" for kind in MEMORY_KINDS for verb in ("register", "unregister")]
    regions += [f"{kind}/unregister" for kind in MEMORY_KINDS]
    traces = ["/v2/trace/setting", f"{MODEL}/trace/setting"]
    return [
        *((path, ("POST",), documents.STORE_DECIDES) for path in loads),
        *((path, ("POST",), documents.NO_SHARED_MEMORY) for path in regions),
        *((path, ANY_METHOD, documents.NO_TRACE_SETTING) for path in traces),
        ("/v2/logging", ANY_METHOD, documents.NO_LOG_SETTINGS),
    ]
