"""The HTTP face: the Open Inference Protocol over REST, the Hugging Face task API, health, metrics, docs."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.config import ServiceConfig
from service.errors import DeadlineExceeded, HeedError, InvalidRequest, Overloaded, TooLarge, TooSlow, clipped
from service.prediction.accounting import outcome_of
from service.prediction.messages import (
    AttentionSelector,
    Classification,
    Explained,
    ExplainRequest,
    Receipt,
    RequestOptions,
    Translated,
)
from service.prediction.predictor import Predictor
from service.process.memory_budget import ByteBudget, Reservation
from service.tasks.hub_messages import (
    HUB_TOP_K,
    ExplainParameters,
    ImageClassificationParameters,
    ImageClassificationRequest,
    SearchParameters,
    TextClassificationRequest,
    TranslationRequest,
    is_json,
    labelled_scores,
    texts_and_field,
    translation_text,
)
from service.telemetry.metrics import Metrics, Outcome
from service.tensors import TensorSpec, bytes_array
from service.transport import SERVER_NAME, server_version
from service.transport.http import open_inference_json as rest
from service.transport.http.connection import BODY_STEP_BYTES, MEMORY, ConnectionLimits, HttpServer
from service.transport.http.json_bounds import read_bounded_json
from service.transport.http.openapi import openapi_document
from service.transport.request_metadata import (
    MAX_DIGITS,
    MAX_READ_AT_ONCE,
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
    Parameters,
    earliest,
    explain_request_of,
    number_of,
    parameters_of,
    request_id_of,
)
from service.transport.server_spans import TracedRoute
from service.transport.status import INTERNAL, STATUS_OF, internal_error_text
from service.transport.tensor_codec import LOCK_PAUSE_S
from service.transport.turns import Turns

if TYPE_CHECKING:  # it needs an extra
    from service.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

ARRIVED_S = "heed.arrived_s"  # in a request's scope: when its headers were there, on `time.monotonic()`'s clock
MAX_UNCOUNTED_BYTES = 64 * 1024  # of an answer: a connection's own buffers take as much
PIECE_BYTES = 256 * 1024  # of an answer: what is written in one step
LEFT_UNREAD = "heed.left_unread"  # there when the rest of the body will not be read
# The page for people who try the models: no inline script, and nothing from elsewhere or to elsewhere. Pictures that it
# shows are the person's own and the answer's.
PLAYGROUND = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PLAYGROUND_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a newer server may have a newer page
}
JSON_ELEMENT_BYTES = 20  # of an answer's tensor: digits, sign, point, comma
T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; nginx's number for it


def build_http(
    predictor: Predictor,
    metrics: Metrics,
    config: ServiceConfig,
    request_memory: ByteBudget,
    turns: Turns,
    tracing: "Tracing | None" = None,
) -> tuple[HttpServer, socket.socket]:
    """The server and the socket it will listen on, bound already so that its port is known.

    Args:
        predictor: answers.
        metrics: what /metrics says.
        config: the options.
        request_memory: that requests and answers of both faces may hold.
        turns: of long steps of both faces.
        tracing: where traces go, if anywhere.

    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.create_server((config.host, config.http_port), family=family, backlog=2048)
    limits = ConnectionLimits(config.max_connections, config.client_timeout_s, request_memory, turns)
    application = HttpApplication(predictor, metrics, config, turns, tracing)
    return HttpServer(application.asgi, limits), listener


class HttpApplication:
    """The endpoints."""

    def __init__(
        self,
        predictor: Predictor,
        metrics: Metrics,
        config: ServiceConfig,
        turns: Turns,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._predictor, self._metrics, self._config, self._turns = predictor, metrics, config, turns
        self._scrape_thread = ThreadPoolExecutor(1, "scrape")
        # Those that are being written, by content type: who asks meanwhile gets the same.
        self._scrapes: dict[str, asyncio.Future[bytes]] = {}

        def asks_a_model(path: str, answer: Callable[[Request, str], Awaitable[Response]]) -> Route:
            traced = None if tracing is None else [Middleware(TracedRoute, tracing, path)]
            return Route(path, guarded(answer, infers=True), methods=["POST"], middleware=traced)

        guarded = self._guarded
        model = "/v2/models/{model}"
        self.asgi = Starlette(
            routes=[
                *(Route(path, self._playground) for path in PLAYGROUND),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._exposition),
                Route("/docs", self._docs),
                Route("/openapi.json", self._openapi),
                Route("/v2", guarded(self._server_metadata)),
                Route("/v2/", guarded(self._server_metadata)),
                Route("/v2/models", guarded(self._model_index)),
                Route("/v2/health/live", guarded(self._live)),
                Route("/v2/health/ready", guarded(self._ready)),
                *(
                    route
                    for prefix in (model, model + "/versions/{version}")
                    for route in (
                        Route(prefix, guarded(self._model_metadata)),
                        Route(prefix + "/card", guarded(self._model_card)),
                        Route(prefix + "/ready", guarded(self._model_ready)),
                        asks_a_model(prefix + "/infer", self._infer),
                        asks_a_model(prefix + "/explain", self._explain),
                    )
                ),
                asks_a_model("/models/{model}", self._task),
            ],
            exception_handlers={HTTPException: self._no_such_route},
        )

    # --- every call --------------------------------------------------------------------------------------------------

    def _guarded(
        self, answer: Callable[[Request, str], Awaitable[Response]], *, infers: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """What every call shares: its request id, its errors as statuses, its end when the client hangs up.

        The failures of a call that `infers` are counted.
        """

        async def endpoint(request: Request) -> Response:
            request.scope[ARRIVED_S] = time.monotonic()
            request_id = request_id_of(request.headers.get(REQUEST_ID_HEADER))
            try:
                response = await answer(request, request_id)
                if (num_bytes := _body_bytes(response)) > MAX_UNCOUNTED_BYTES:
                    # The request's body is still there, or not needed any more.
                    memory: Reservation = request.scope[MEMORY]
                    memory.grow_to(num_bytes)
            except HeedError as error:
                response = error_response(STATUS_OF[type(error)].http, str(error))
                if infers and not error.counted:
                    self._count_failure(request, request_id, outcome_of(error), str(error))
                if isinstance(error, Overloaded):
                    response.headers["retry-after"] = str(int(error.retry_after_s) + 1)
            except ClientDisconnect:
                response = Response(status_code=CLIENT_CLOSED_REQUEST)
            except Exception:
                log.exception("unexpected error", request_id=request_id, path=request.url.path)
                response = error_response(INTERNAL.http, internal_error_text(request_id))
            response.headers[REQUEST_ID_HEADER] = request_id
            if LEFT_UNREAD in request.scope:
                response.headers["connection"] = "close"
            return response

        return endpoint

    async def _no_such_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = {
            404: clipped(f"no such path: {request.url.path}"),
            405: f"{request.method} is not allowed on {request.url.path}",
        }
        response = error_response(error.status_code, text.get(error.status_code, error.detail))
        response.headers.update(error.headers or {})
        response.headers[REQUEST_ID_HEADER] = request_id_of(request.headers.get(REQUEST_ID_HEADER))
        return response

    def _count_failure(self, request: Request, request_id: str, outcome: Outcome, why: str) -> None:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        self._predictor.count_failure(name, version, "http", request_id, outcome, why)

    async def _body(self, request: Request, request_id: str) -> bytes:
        limit = self._config.max_body_bytes
        if (encoding := request.headers.get("content-encoding", "identity")).lower() != "identity":
            raise InvalidRequest(f"header content-encoding is {encoding[:40]!r}; bodies are taken uncompressed")
        too_large = TooLarge(f"the body is larger than the limit of {limit} bytes")
        if (declared := request.headers.get("content-length", "0")).isdecimal() and int(declared) > limit:
            raise too_large
        memory: Reservation = request.scope[MEMORY]
        memory.grow_to(int(declared) if declared.isdecimal() else 0)
        timeout_s = _header_timeout_s(request)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + (self._config.default_timeout_s if timeout_s is None else timeout_s)
        parts, size, next_step_bytes = [], 0, BODY_STEP_BYTES
        try:
            async with asyncio.timeout_at(min(deadline_s, loop.time() + self._config.client_timeout_s)) as timeout:
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    memory.grow_to(size)
                    parts.append(part)
                    if size >= next_step_bytes:
                        next_step_bytes = size + BODY_STEP_BYTES
                        timeout.reschedule(min(deadline_s, loop.time() + self._config.client_timeout_s))
        except TimeoutError:
            request.scope[LEFT_UNREAD] = True
            if timeout.when() == deadline_s:  # the loop's clock is coarse, and may stand just before it
                raise DeadlineExceeded(f"the deadline passed when {size} bytes of the body were there") from None
            raise TooSlow(
                f"the body comes too slowly: {size} bytes were there, and each further {BODY_STEP_BYTES} must come"
                f" within {self._config.client_timeout_s} s (client_timeout_s)"
            ) from None
        except ClientDisconnect:
            self._count_failure(request, request_id, "cancelled", "the client hung up before its request was whole")
            raise
        return await self._turns.joined(parts)

    async def _in_turn(self, work: Callable[[], T], size: int) -> T:
        """Read or write JSON: at once where it is small, else in the thread for long steps."""
        return work() if size <= MAX_READ_AT_ONCE else await self._turns.in_thread(work)

    async def _while_connected(self, request: Request, work: Awaitable[Any]) -> Any:
        """Await `work`, or cancel it when the client hangs up.

        Raises:
            ClientDisconnect: it did.
        """
        task = asyncio.current_task()
        assert task is not None
        hung_up = False

        async def watch() -> None:
            nonlocal hung_up
            # The body has been read: what comes next can only be the end of the connection.
            while (await request.receive())["type"] != "http.disconnect":
                pass
            hung_up = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            return await work
        except asyncio.CancelledError:
            if hung_up:
                task.uncancel()
                raise ClientDisconnect from None
            raise
        finally:
            watcher.cancel()

    def _call(
        self,
        request: Request,
        request_id: str,
        parameter_timeout_s: float | None,
        truncate: bool,
        search: SearchParameters | Parameters | None = None,
    ) -> RequestOptions:
        timeout_s = earliest(_header_timeout_s(request), parameter_timeout_s)
        if timeout_s is not None:
            timeout_s -= time.monotonic() - request.scope[ARRIVED_S]
        return RequestOptions(
            model=request.path_params["model"],
            version=request.path_params.get("version", ""),
            protocol="http",
            request_id=request_id,
            timeout_s=timeout_s,
            truncate=truncate,
            num_beams=None if search is None else search.num_beams,
            max_new_tokens=None if search is None else search.max_new_tokens,
            length_penalty=None if search is None else search.length_penalty,
        )

    # --- Open Inference Protocol -------------------------------------------------------------------------------------

    async def _read(
        self, request: Request, request_id: str
    ) -> tuple[rest.InferMessage, Parameters, RequestOptions, int | None]:
        """A request with tensors, its parameters, and the length of its JSON part; None where all of it is JSON."""
        body = await self._body(request, request_id)
        name, version = request.path_params["model"], request.path_params.get("version", "")
        self._predictor.check_target(name, version, byte_elements=0)
        specs = None
        header_bytes = rest.header_length(request.headers.get(rest.BINARY_HEADER), len(body))
        if header_bytes == 0:
            specs = self._predictor.describe(name, version).inputs
        read = partial(rest.read_infer, header_bytes=header_bytes, specs=specs)
        message = await self._in_turn(partial(read, body), len(body))
        parameters = parameters_of(message.parameters)
        call = self._call(request, request_id, parameters.timeout_s, parameters.truncate, parameters)
        return message, parameters, call, header_bytes

    async def _infer(self, request: Request, request_id: str) -> Response:
        message, parameters, call, header_bytes = await self._read(request, request_id)
        answer = self._predictor.infer(call, message.arrays, [output.name for output in message.outputs])
        outputs, receipt = await self._while_connected(request, answer)
        all_binary = parameters.binary_data_output or header_bytes == 0
        write = partial(rest.write_infer, call.model, receipt, message, outputs, all_binary=all_binary)
        num_elements = sum(array.size for array in outputs.values())
        if not all_binary and num_elements > MAX_READ_AT_ONCE:
            memory: Reservation = request.scope[MEMORY]
            memory.grow_to(num_elements * JSON_ELEMENT_BYTES)
        pieces, json_bytes = await self._in_turn(write, num_elements)
        if json_bytes is None:
            return answer_in_pieces(pieces, "application/json")
        return answer_in_pieces(pieces, "application/octet-stream", {rest.BINARY_HEADER: str(json_bytes)})

    async def _explain(self, request: Request, request_id: str) -> Response:
        message, _, call, _ = await self._read(request, request_id)
        answer = self._predictor.explain(call, message.arrays, explain_request_of(message.parameters))
        explained, receipt = await self._while_connected(request, answer)
        message_id = message.id or request_id
        return json_response(rest.explain_response(call.model, message_id, explained.explanation, receipt))

    async def _server_metadata(self, request: Request, request_id: str) -> Response:
        return json_response(
            {"name": SERVER_NAME, "version": server_version(), "extensions": self._predictor.extensions}
        )

    async def _live(self, request: Request, request_id: str) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request, request_id: str) -> Response:
        why = self._predictor.not_ready_because()
        return json_response({"ready": why is None, "reason": why}, 200 if why is None else 503)

    async def _model_metadata(self, request: Request, request_id: str) -> Response:
        model = self._predictor.describe(request.path_params["model"], request.path_params.get("version", ""))
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
        return json_response({"models": self._predictor.index(), "grpc_port": self._config.grpc_port or None})

    async def _model_card(self, request: Request, request_id: str) -> Response:
        card = self._predictor.card(request.path_params["model"], request.path_params.get("version", ""))
        return Response(card, media_type="text/markdown")

    async def _model_ready(self, request: Request, request_id: str) -> Response:
        name, version = (
            request.path_params["model"],
            request.path_params.get("version", ""),
        )
        why = self._predictor.problem_of(name, version)
        return json_response(
            {"name": name, "ready": why is None, "reason": why},
            200 if why is None else 503,
        )

    # --- Hugging Face task API ---------------------------------------------------------------------------------------

    async def _task(self, request: Request, request_id: str) -> Response:
        body = await self._body(request, request_id)
        task = self._predictor.task_of(request.path_params["model"])
        if task == "image-classification":
            return await self._classify_image(request, request_id, body)
        if task == "translation":
            return await self._translate(request, request_id, body)
        message = await self._in_turn(partial(read_bounded_json, body, TextClassificationRequest), len(body))
        texts, field = texts_and_field(message.inputs)
        call = self._call(request, request_id, None, message.parameters.truncation)
        function, top_k = message.parameters.function_to_apply or "softmax", message.parameters.top_k
        if (explain := message.parameters.explain) is not None:
            inputs = {"text": bytes_array([text.encode() for text in texts])}
            asking = self._predictor.explain(call, inputs, explain_request(explain), field, function, top_k)
            return await self._explained(request, call, asking)
        answer = self._predictor.classify_texts(call, texts, field=field, function=function, top_k=top_k)
        classifications, receipt = await self._while_connected(request, answer)
        num_scores = sum(len(answered.scores) for answered in classifications)
        body = await self._in_turn(partial(_classified, classifications), num_scores)
        return Response(body, headers=receipt_headers(receipt), media_type="application/json")

    async def _translate(self, request: Request, request_id: str, body: bytes) -> Response:
        message = await self._in_turn(partial(read_bounded_json, body, TranslationRequest), len(body))
        parameters = message.parameters
        search = parameters.search()
        self._predictor.check_languages(request.path_params["model"], parameters.src_lang, parameters.tgt_lang)
        call = self._call(request, request_id, None, parameters.truncate, search)
        texts, field = texts_and_field(message.inputs)
        if message.stream:
            if not isinstance(message.inputs, str):
                raise InvalidRequest("inputs must be one text where stream is true")
            if parameters.explain is not None:
                raise InvalidRequest("explain is not offered where stream is true: what is explained is the whole")
            return await self._stream(request, request_id, self._predictor.stream_translation(call, texts[0], "inputs"))
        if parameters.explain is not None:
            inputs = {"text": bytes_array([text.encode() for text in texts])}
            asking = self._predictor.explain(call, inputs, explain_request(parameters.explain), field)
            return await self._explained(request, call, asking)
        answer = self._predictor.translate_texts(call, texts, field)
        translations, receipt = await self._while_connected(request, answer)
        document = [translation_text(translated.text) for translated in translations]
        return json_response(document, headers=receipt_headers(receipt))

    async def _stream(
        self, request: Request, request_id: str, pieces: AsyncGenerator[str | tuple[Translated, Receipt], None]
    ) -> Response:
        """Server-sent events (WHATWG HTML, 9.2): each piece of a translation, and at last the whole with its receipt.

        Starlette leaves the iteration when the client hangs up.
        """
        # What is refused is refused with a status of its own.
        first = await self._while_connected(request, anext(pieces))

        async def events() -> AsyncIterator[bytes]:
            piece: str | tuple[Translated, Receipt] = first
            try:
                while True:
                    if isinstance(piece, str):
                        yield _event({"text": piece})
                    else:
                        translated, receipt = piece
                        whole = translation_text(translated.text) | {"score": translated.score}
                        told = {"num_tokens": translated.num_tokens, "num_beams": 1, "receipt": receipt.as_dict()}
                        yield _event(whole | told)
                        return
                    piece = await anext(pieces)
            except HeedError as error:
                yield _event({"error": str(error)})
            except Exception:
                log.exception("unexpected error", request_id=request_id, path=request.url.path)
                yield _event({"error": internal_error_text(request_id)})
            finally:
                await pieces.aclose()

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def _classify_image(self, request: Request, request_id: str, body: bytes) -> Response:
        image, field, parameters = body, "the body", ImageClassificationParameters()
        if is_json(body):
            # One string, the file's base64, is most of it, and costs little to decode.
            read = partial(read_bounded_json, body, ImageClassificationRequest, self._config.max_body_bytes)
            message = await self._in_turn(read, len(body))
            image, field, parameters = message.inputs.encode(), "inputs", message.parameters
        call = self._call(request, request_id, None, truncate=False)
        function, top_k = parameters.function_to_apply or "softmax", parameters.top_k or HUB_TOP_K
        if parameters.explain is not None:
            inputs, asked = {"image": bytes_array([image])}, explain_request(parameters.explain)
            asking = self._predictor.explain(call, inputs, asked, field, function, top_k)
            return await self._explained(request, call, asking)
        answer = self._predictor.classify_images(call, [image], field=field, function=function, top_k=top_k)
        (answered,), receipt = await self._while_connected(request, answer)
        return json_response(labelled_scores(answered.labels, answered.scores), headers=receipt_headers(receipt))

    async def _explained(
        self, request: Request, call: RequestOptions, asking: Awaitable[tuple[Explained, Receipt]]
    ) -> Response:
        """The usual answer, and beside it its explanation."""
        (answer, explanation), receipt = await self._while_connected(request, asking)
        document: object
        if isinstance(answer, Translated):
            document = [translation_text(answer.text)]
        else:
            scores = labelled_scores(answer.labels, answer.scores)
            document = scores if explanation.patches else [scores]
        explained = rest.explain_response(call.model, call.request_id, explanation, receipt)
        return json_response({"answer": document, "explanation": explained}, headers=receipt_headers(receipt))

    # --- for operators -----------------------------------------------------------------------------------------------

    async def _playground(self, request: Request) -> Response:
        file, media_type = PLAYGROUND[request.url.path]
        text = files("service.transport.http.playground").joinpath(file).read_text()
        return Response(text, media_type=media_type, headers=PLAYGROUND_HEADERS)

    async def _healthz(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _readyz(self, request: Request) -> Response:
        why = self._predictor.not_ready_because()
        document = {
            "ready": why is None,
            "reason": why,
            "not_served": self._predictor.problems(),
        }
        return json_response(document, 200 if why is None else 503)

    async def _exposition(self, request: Request) -> Response:
        pieces, content_type = self._metrics.exposition(request.headers.get("accept", ""))

        def written() -> bytes:
            text = bytearray()
            for piece in pieces:
                text += piece
                time.sleep(LOCK_PAUSE_S)  # between two pieces
            return bytes(text)

        if (scrape := self._scrapes.get(content_type)) is None:
            scrape = asyncio.get_running_loop().run_in_executor(self._scrape_thread, written)
            self._scrapes[content_type] = scrape
            scrape.add_done_callback(lambda _: self._scrapes.pop(content_type))
        return Response(await asyncio.shield(scrape), headers={"content-type": content_type})

    async def _openapi(self, request: Request) -> Response:
        return json_response(
            openapi_document(
                server_version(),
                self._predictor.model_names(),
                TextClassificationRequest,
                ImageClassificationRequest,
                TranslationRequest,
            )
        )

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(files("service.transport.http.playground").joinpath("docs.html").read_text())


def _header_timeout_s(request: Request) -> float | None:
    """What the client gives the call; None if it does not say.

    Raises:
        InvalidRequest: it says something else.
    """
    if (text := request.headers.get(TIMEOUT_HEADER)) is None:
        return None
    if not (milliseconds := number_of(text)):
        raise InvalidRequest(
            f"header {TIMEOUT_HEADER} must be a whole number of milliseconds above 0, of at most {MAX_DIGITS}"
            f" digits, not {text[:40]!r}"
        )
    return milliseconds * 1e-3


def _classified(classifications: Sequence[Classification]) -> bytes:
    """The classes of several texts as JSON; a call of the encoder for each, so that none is long."""
    rows = [msgspec.json.encode(labelled_scores(answered.labels, answered.scores)) for answered in classifications]
    return b"".join((b"[", b",".join(rows), b"]"))


def _event(document: object) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def explain_request(parameters: ExplainParameters) -> ExplainRequest:
    """What the task API asks of an explanation."""
    selector = AttentionSelector(parameters.part, parameters.layer, parameters.head)
    return ExplainRequest(parameters.method, parameters.target, parameters.n_samples, parameters.seed, selector)


def receipt_headers(receipt: Receipt) -> dict[str, str]:
    """The receipt, for answers whose body has no room for it."""
    headers = {
        f"x-heed-{name.replace('_', '-')}": str(value).lower() for name, value in receipt.as_parameters().items()
    }
    return headers | {"x-heed-model-version": receipt.model_version}


class PiecesResponse(Response):
    """An answer whose body is written piece by piece.

    To put a long one together would take as much memory again, and hold the interpreter's lock meanwhile.
    """

    def __init__(self, pieces: Sequence[bytes], media_type: str, headers: dict[str, str]) -> None:
        self._pieces, self.num_bytes = pieces, sum(map(len, pieces))
        super().__init__(None, 200, headers | {"content-length": str(self.num_bytes)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces, each when the client has taken most of those before."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            for start in range(0, len(piece), PIECE_BYTES):
                part = memoryview(piece)[start : start + PIECE_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def answer_in_pieces(pieces: Sequence[bytes], media_type: str, headers: dict[str, str] | None = None) -> Response:
    """An answer of pieces, put together where it is short."""
    if sum(map(len, pieces)) <= MAX_UNCOUNTED_BYTES:
        return Response(b"".join(pieces), 200, headers, media_type)
    return PiecesResponse(pieces, media_type, headers or {})


def _body_bytes(response: Response) -> int:
    if isinstance(response, PiecesResponse):
        return response.num_bytes
    return 0 if isinstance(response, StreamingResponse) else len(response.body)


def json_response(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A document as JSON."""
    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")


def error_response(status: int, text: str) -> Response:
    """An error as the Open Inference Protocol and the Hugging Face API both write it."""
    return json_response({"error": text}, status)


def _tensor_metadata(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
