"""The Open Inference Protocol over REST: inference, explanations, metadata and health, by model and of the server."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import InvalidRequest
from service.prediction.messages import RequestOptions
from service.process.memory_budget import Reservation
from service.tensors import TensorSpec
from service.transport.extension_documents import check_not_streamed
from service.transport.http import open_inference_json as rest
from service.transport.http.connection import MEMORY
from service.transport.http.endpoint import Endpoint, run_while_connected
from service.transport.http.model_administration import ModelAdministration
from service.transport.http.responses import json_response, pieces_response, readiness_response
from service.transport.request_metadata import MAX_READ_AT_ONCE, Parameters, explain_request_of, parameters_of
from service.version import installed_version

JSON_ELEMENT_BYTES = 20  # size of one element of an output: digits, sign, point, comma
MODEL = "/v2/models/{model}"


class OpenInference:
    """Handlers of the Open Inference Protocol."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._predictor = endpoint, endpoint.predictor

    def routes(self) -> list[Route]:
        """Return the protocol's routes; those that serve the most requests come first."""
        route, inference_route = self._endpoint.route, self._endpoint.inference_route
        prefixes = (MODEL, MODEL + "/versions/{version}")
        return [
            *(inference_route(prefix + "/infer", self._infer) for prefix in prefixes),
            *(inference_route(prefix + "/explain", self._explain) for prefix in prefixes),
            *ModelAdministration(self._endpoint).routes(),  # /v2/models/stats is no model
            *(route(prefix, self._model_metadata) for prefix in prefixes),
            *(route(prefix + "/card", self._model_card) for prefix in prefixes),
            *(route(prefix + "/ready", self._model_ready) for prefix in prefixes),
            route("/v2", self._server_metadata),
            route("/v2/", self._server_metadata),
            route("/v2/models", self._model_index),
            route("/v2/health/live", self._live),
            route("/v2/health/ready", self._ready),
        ]

    async def _read(
        self, request: Request, request_id: str
    ) -> tuple[rest.InferMessage, Parameters, RequestOptions, int | None]:
        """Read a request with tensors.

        Returns:
            the message, its parameters, the request's options, and the length of its JSON part in bytes (None if all
            of the body is JSON).
        """
        endpoint, predictor = self._endpoint, self._predictor
        body = await endpoint.read_body(request, request_id)
        name, version = request.path_params["model"], request.path_params.get("version", "")
        predictor.check_target(name, version, byte_elements=0)
        specs = None
        header_bytes = rest.header_length(request.headers.get(rest.BINARY_HEADER), len(body))
        if header_bytes == 0:
            specs = predictor.catalog.describe(name, version).inputs
        read = partial(rest.read_infer, body, header_bytes=header_bytes, specs=specs)
        message = await endpoint.decode_inline_or_in_thread(read, len(body))
        check_not_streamed(message.parameters)
        parameters = parameters_of(message.parameters)
        options = endpoint.request_options(request, request_id, parameters.timeout_s, parameters.truncate, parameters)
        return message, parameters, options, header_bytes

    async def _infer(self, request: Request, request_id: str) -> Response:
        message, parameters, options, header_bytes = await self._read(request, request_id)
        answer = self._predictor.infer(options, message.arrays, *message.outputs)
        outputs, receipt = await run_while_connected(request, answer)
        all_binary = parameters.binary_data_output or header_bytes == 0
        write = partial(rest.write_infer, options.model, receipt, message, outputs, all_binary=all_binary)
        num_elements = sum(array.size for array in outputs.values())
        if not all_binary and num_elements > MAX_READ_AT_ONCE:
            memory: Reservation = request.scope[MEMORY]
            memory.grow_to(num_elements * JSON_ELEMENT_BYTES)
        pieces, json_bytes = await self._endpoint.decode_inline_or_in_thread(write, num_elements)
        if json_bytes is None:
            return pieces_response(pieces, "application/json")
        return pieces_response(pieces, "application/octet-stream", {rest.BINARY_HEADER: str(json_bytes)})

    async def _explain(self, request: Request, request_id: str) -> Response:
        message, parameters, options, _ = await self._read(request, request_id)
        if message.outputs.names or parameters.binary_data_output:
            raise InvalidRequest("an explanation is one JSON document: it takes neither outputs nor binary_data_output")
        answer = self._predictor.explain(options, message.arrays, explain_request_of(message.parameters))
        explained, receipt = await run_while_connected(request, answer)
        message_id = message.id or request_id
        return json_response(rest.explain_response(options.model, message_id, explained.explanation, receipt))

    async def _server_metadata(self, request: Request, request_id: str) -> Response:
        catalog = self._predictor.catalog
        document = {"name": catalog.server_name, "version": installed_version(), "extensions": catalog.extensions}
        return json_response(document)

    async def _live(self, request: Request, request_id: str) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request, request_id: str) -> Response:
        why = self._predictor.catalog.not_ready_because()
        return readiness_response({"ready": why is None, "reason": why})

    async def _model_metadata(self, request: Request, request_id: str) -> Response:
        model = self._predictor.catalog.describe(request.path_params["model"], request.path_params.get("version", ""))
        document = {
            "name": model.name,
            "versions": model.versions,
            "platform": model.platform,
            "inputs": [_tensor_metadata(spec) for spec in model.inputs],
            "outputs": [_tensor_metadata(spec) for spec in model.outputs],
            "properties": model.properties,
        }
        return json_response(document)

    async def _model_index(self, request: Request, request_id: str) -> Response:
        grpc_port = self._endpoint.config.grpc_port or None
        return json_response({"models": self._predictor.catalog.index(), "grpc_port": grpc_port})

    async def _model_card(self, request: Request, request_id: str) -> Response:
        card = self._predictor.catalog.card(request.path_params["model"], request.path_params.get("version", ""))
        return Response(card, media_type="text/markdown")

    async def _model_ready(self, request: Request, request_id: str) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        why = self._predictor.catalog.problem_of(name, version)
        return readiness_response({"name": name, "ready": why is None, "reason": why})


def _tensor_metadata(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
