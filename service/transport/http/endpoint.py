"""The base of all HTTP calls: request ids, errors as responses, body limits, hang-up detection, tracing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from service.config import ServiceConfig
from service.errors import DeadlineExceeded, HeedError, InvalidRequest, Overloaded, TooLarge, TooSlow, clipped
from service.prediction.accounting import outcome_of
from service.prediction.messages import RequestOptions
from service.prediction.predictor import Predictor
from service.process.memory_budget import Reservation
from service.tasks.stored_task import HubCall
from service.telemetry.tallies import Outcome
from service.transport.content_encoding import MAX_INLINE_BYTES, content_encoding, decompressed
from service.transport.http.connection import BODY_STEP_BYTES, MEMORY
from service.transport.http.responses import MAX_UNCOUNTED_BYTES, ErrorForm, error_response, num_body_bytes, plain_error
from service.transport.request_metadata import (
    MAX_DIGITS,
    MAX_READ_AT_ONCE,
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
    Parameters,
    RequestIds,
    earliest,
    number_of,
)
from service.transport.server_spans import TracedRoute
from service.transport.status import INTERNAL, STATUS_OF, internal_error_text
from service.transport.turns import Turns

if TYPE_CHECKING:  # tracing needs an optional dependency
    from service.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

ARRIVED_S = "heed.arrived_s"  # key in a request's scope: time at which its headers were read, by `time.monotonic()`
BODY_ABANDONED = "heed.body_abandoned"  # key in a request's scope: set if the rest of its body will not be read
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that hung up; only logs and tests see it

Handler = Callable[[Request, str], Awaitable[Response]]  # makes the response from a request and its id
T = TypeVar("T")


class Endpoint:
    """The part that all HTTP calls share; each API of the server is given one.

    Args:
        predictor: answers requests.
        config: the server's options.
        turns: queue for long steps, shared with the gRPC server.
        tracing: records a span for each inference request; None turns tracing off.
    """

    def __init__(
        self, predictor: Predictor, config: ServiceConfig, turns: Turns, tracing: "Tracing | None" = None
    ) -> None:
        self.predictor, self.config = predictor, config
        self._turns, self._tracing, self._request_ids = turns, tracing, RequestIds()

    def route(
        self, path: str, handler: Handler, methods: Sequence[str] = ("GET",), error_form: ErrorForm = plain_error
    ) -> Route:
        """Build a route for requests that are no inference."""
        return Route(path, self._guard(handler, error_form), methods=list(methods))

    def inference_route(self, path: str, handler: Handler, error_form: ErrorForm = plain_error) -> Route:
        """Build a route for POST requests to a model: they are traced, and their failures are counted.

        Args:
            path: path of the route. Where it does not name the model, the handler adds it to the path's parameters.
            handler: makes the response.
            error_form: makes the response of an error.
        """
        traced = None if self._tracing is None else [Middleware(TracedRoute, self._tracing, path)]
        return Route(path, self._guard(handler, error_form, infers=True), methods=["POST"], middleware=traced)

    def _guard(
        self, handler: Handler, error_form: ErrorForm, *, infers: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: give the request its id, turn errors into responses, reserve memory for the response."""

        async def respond(request: Request) -> Response:
            request.scope[ARRIVED_S] = time.monotonic()
            request_id = self._request_ids.choose(request.headers.get(REQUEST_ID_HEADER))
            try:
                response = await handler(request, request_id)
                if (num_bytes := num_body_bytes(response)) > MAX_UNCOUNTED_BYTES:
                    # The reservation for the request's body is reused: the body is still held or no longer needed.
                    memory: Reservation = request.scope[MEMORY]
                    memory.grow_to(num_bytes)
            except HeedError as error:
                response = error_form(type(error), STATUS_OF[type(error)].http, str(error))
                if infers and not error.counted:
                    self._count_failure(request, request_id, outcome_of(error), str(error))
                if isinstance(error, Overloaded):
                    response.headers["retry-after"] = str(int(error.retry_after_s) + 1)
            except ClientDisconnect:
                response = Response(status_code=CLIENT_CLOSED_REQUEST)
            except Exception:
                log.exception("unexpected error", request_id=request_id, path=request.url.path)
                response = error_form(HeedError, INTERNAL.http, internal_error_text(request_id))
            response.headers[REQUEST_ID_HEADER] = request_id
            if BODY_ABANDONED in request.scope:
                response.headers["connection"] = "close"
            return response

        return respond

    def _count_failure(self, request: Request, request_id: str, outcome: Outcome, why: str) -> None:
        name, version = request.path_params.get("model", ""), request.path_params.get("version", "")
        self.predictor.accounting.count_failure(name, version, "http", request_id, outcome, why)

    async def read_body(self, request: Request, request_id: str) -> bytes:
        """Read a request's body within the limits of size, memory, time and speed, and decompress it.

        Raises:
            InvalidRequest: the body is compressed in a way that is not offered, or the time-out header is malformed.
            TooLarge: the body has more bytes than `max_body_bytes`, as it is sent or decompressed.
            Overloaded: the request memory has no room for the body.
            DeadlineExceeded: the request's deadline passed before the body was complete.
            TooSlow: the client took longer than `client_timeout_s` for a step of the body.
            ClientDisconnect: the client hung up before the body was complete.
        """
        limit = self.config.max_body_bytes
        given = request.headers.getlist("content-encoding")
        encoding = content_encoding(given) if given else None
        if (declared := request.headers.get("content-length", "0")).isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        memory: Reservation = request.scope[MEMORY]
        memory.grow_to(int(declared) if declared.isdecimal() else 0)
        timeout_s = _header_timeout_s(request)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + (self.config.default_timeout_s if timeout_s is None else timeout_s)
        parts, size, next_step_bytes = [], 0, BODY_STEP_BYTES
        try:
            async with asyncio.timeout_at(min(deadline_s, loop.time() + self.config.client_timeout_s)) as timeout:
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    memory.grow_to(size)
                    parts.append(part)
                    if size >= next_step_bytes:
                        next_step_bytes = size + BODY_STEP_BYTES
                        timeout.reschedule(min(deadline_s, loop.time() + self.config.client_timeout_s))
        except TimeoutError:
            request.scope[BODY_ABANDONED] = True
            # The two times are compared, not the clock: the loop's clock is coarse and may be just before the deadline.
            if timeout.when() == deadline_s:
                raise DeadlineExceeded(f"the deadline passed when {size} bytes of the body had arrived") from None
            raise TooSlow(
                f"the body arrives too slowly: {size} bytes are there, and each further {BODY_STEP_BYTES} must arrive"
                f" within {self.config.client_timeout_s} s (client_timeout_s)"
            ) from None
        except ClientDisconnect:
            if "model" in request.path_params:
                why = "the client hung up before its request was complete"
                self._count_failure(request, request_id, "cancelled", why)
            raise
        body = await self._turns.joined(parts)
        return body if encoding is None else await self._decompressed(body, encoding, memory)

    async def _decompressed(self, body: bytes, encoding: str, memory: Reservation) -> bytes:
        """Decompress a body, a long one in the thread for long steps; both its forms are held meanwhile."""

        def reserve(num_bytes: int) -> None:
            memory.grow_to(len(body) + num_bytes)

        work = partial(decompressed, body, encoding, self.config.max_body_bytes, reserve)
        return work() if len(body) <= MAX_INLINE_BYTES else await self._turns.in_thread(work)

    async def decode_inline_or_in_thread(self, work: Callable[[], T], size: int) -> T:
        """Decode or encode JSON: inline if it is small, else in the thread for long steps.

        Args:
            work: does it.
            size: bytes to decode, or elements to encode.
        """
        return work() if size <= MAX_READ_AT_ONCE else await self._turns.in_thread(work)

    def request_options(
        self,
        request: Request,
        request_id: str,
        parameter_timeout_s: float | None,
        truncate: bool,
        search: HubCall | Parameters | None = None,
    ) -> RequestOptions:
        """Collect a request's options from its path, headers and parameters.

        Args:
            request: gives the model, the version and the time-out header.
            request_id: identifies the request in logs.
            parameter_timeout_s: time-out in the request's parameters; the shorter of it and the header's holds.
            truncate: whether inputs that are too long are cut.
            search: parameters of a search or of vectors.

        Raises:
            InvalidRequest: the time-out header is malformed.
        """
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
            generation=None if search is None else search.generation,
            embedding=None if search is None else search.embedding,
        )

    async def no_such_route(self, request: Request, error: Exception) -> Response:
        """Respond to a path or method that no route has (an exception handler of Starlette)."""
        assert isinstance(error, HTTPException)
        text = {
            404: clipped(f"no such path: {request.url.path}"),
            405: f"{request.method} is not allowed on {request.url.path}",
        }
        response = error_response(error.status_code, text.get(error.status_code, error.detail))
        response.headers.update(error.headers or {})
        response.headers[REQUEST_ID_HEADER] = self._request_ids.choose(request.headers.get(REQUEST_ID_HEADER))
        return response


async def run_while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """Await `work`, and cancel it when the client hangs up.

    Raises:
        ClientDisconnect: the client hung up.
    """
    task = asyncio.current_task()
    assert task is not None
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        # The body has been read, so the next message can only be the end of the connection.
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


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the limit of {limit} bytes")


def _header_timeout_s(request: Request) -> float | None:
    """Return the time-out header's value in seconds; None if there is no such header.

    Raises:
        InvalidRequest: the value is not a positive whole number.
    """
    if (text := request.headers.get(TIMEOUT_HEADER)) is None:
        return None
    if not (milliseconds := number_of(text)):
        raise InvalidRequest(
            f"header {TIMEOUT_HEADER} must be a whole number of milliseconds above 0, of at most {MAX_DIGITS}"
            f" digits, not {text[:40]!r}"
        )
    return milliseconds * 1e-3
