"""Base of all gRPC calls: receives the message, sets the request id, maps errors to status codes, tracks activity."""

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError

from service.errors import DeadlineExceeded, HeedError, InvalidRequest, Overloaded
from service.prediction.accounting import outcome_of
from service.prediction.predictor import Predictor
from service.transport.grpc.accept import Handlers
from service.transport.grpc.messages import CONTROL, MessageLimits
from service.transport.grpc.receiving import MessageReceiver
from service.transport.request_metadata import REQUEST_ID_HEADER, RequestIds
from service.transport.server_spans import TRACED_CALLS, traced_call
from service.transport.status import INTERNAL, STATUS_OF, internal_error_text
from service.transport.turns import Turns

if TYPE_CHECKING:  # tracing needs an optional dependency
    from service.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Activity:
    """Counts calls by their present state: a shutdown waits for work, but not for clients that do not read.

    Attributes:
        working: number of calls that have their message and do not wait for their client to read.
        writes: number of stream messages that clients have received.
    """

    def __init__(self) -> None:
        self.working = 0
        self.writes = 0


class FramedService:
    """Base class of gRPC services: wraps each call to receive its message and to turn errors into status codes.

    Calls are methods with the names of their protocol. Besides the message and gRPC's context they take the request's
    id. They return a message or its bytes; streams send with `_write` and return nothing.

    Attributes:
        readers: parser of the message's bytes, by the call's name; other calls accept short messages only.
        calls_with_id: names of calls whose request and response messages contain the request id.
    """

    readers: ClassVar[Mapping[str, Callable[[bytes], Any]]] = {}
    calls_with_id: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        predictor: Predictor,
        receiver: MessageReceiver,
        turns: Turns,
        activity: Activity,
        request_ids: RequestIds,
        tracing: "Tracing | None" = None,
        *,
        raw_outputs: bool = False,
    ) -> None:
        self._predictor, self._tracing = predictor, tracing
        self._receiver, self._turns, self._activity = receiver, turns, activity
        self._request_ids, self._raw_outputs = request_ids, raw_outputs

    def register(self, add_to_server: Callable[[Any, Any], None], handlers: Handlers) -> None:
        """Register the calls of this service with the generated function `add_to_server`."""

        def add(service: str, methods: dict[str, Any]) -> None:
            framed = {
                # A call that takes a stream of messages receives each of them itself, by `_receive`.
                name: _with_bytes(handler) if handler.request_streaming else self._framed(name, handler)
                for name, handler in methods.items()
            }
            if self._tracing is not None:
                for name in framed.keys() & TRACED_CALLS:
                    framed[name] = traced_call(framed[name], f"{service}/{name}", self._tracing)
            handlers.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, framed),))

        # The generated code registers every call twice, in two ways of which a server uses one.
        add_to_server(
            self,
            SimpleNamespace(add_registered_method_handlers=add, add_generic_rpc_handlers=lambda _: None),
        )

    def _framed(self, name: str, handler: Any) -> Any:
        """Build a handler that receives its one message itself, because gRPC would wait for it without a limit.

        A call whose messages contain the id gets no metadata for it: the metadata would cost 4 % of the time of a
        request without a model (docs/decisions/transport.md).
        """
        behaviour = handler.unary_unary or handler.unary_stream
        read = self.readers.get(name) or bounded(CONTROL, handler.request_deserializer)
        has_id = name in self.calls_with_id
        activity, receiver, turns = self._activity, self._receiver, self._turns
        choose_id = self._request_ids.choose

        async def answer(_: Any, context: Context) -> bytes | None:
            task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # a call always runs in a task
            header = _metadata(context, REQUEST_ID_HEADER)
            request, request_id, num_reserved = None, "", 0
            try:
                message = await self._receive(context, task)
                if message is None:
                    await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
                    return None
                num_reserved = receiver.reserve(len(message))
                request = read(message)
                del message  # it may be large, and the call may wait for long
                own_id = request.id if has_id else None
                request_id = choose_id(header or own_id)
                if header or own_id is None:
                    context.set_trailing_metadata(((REQUEST_ID_HEADER, request_id),))
                activity.working += 1
                try:
                    reply = await behaviour(request, context, request_id)
                finally:
                    activity.working -= 1
                if reply is None:
                    return None
                encoded: bytes = reply if isinstance(reply, bytes) else reply.SerializeToString()
                receiver.reserve(len(encoded), until_done=task)
                await turns.copies(len(encoded))
            except HeedError as error:
                await self._refuse(context, name, request, request_id or choose_id(header), error)
            except DecodeError as error:
                problem = InvalidRequest(f"the message is not a request of this call: {error}")
                await self._refuse(context, name, None, choose_id(header), problem)
            except (grpc.aio.AbortError, grpc.aio.InternalError):
                raise  # the call has ended
            except Exception:
                request_id = request_id or choose_id(header)
                log.exception("unexpected error", request_id=request_id)
                metadata = ((REQUEST_ID_HEADER, request_id),)
                await abort(context, INTERNAL.grpc, internal_error_text(request_id), metadata)
            else:
                return encoded
            finally:
                receiver.release(num_reserved)
            return None

        kind = "stream_unary" if handler.unary_unary else "stream_stream"
        replaced = {"unary_unary": None, "unary_stream": None, kind: answer}
        return handler._replace(request_streaming=True, request_deserializer=None, response_serializer=None, **replaced)

    async def _receive(self, context: Context, task: asyncio.Task[Any], *, idle: bool = False) -> bytes | None:
        """Receive the next message of a call; None if the client sends no more.

        Args:
            context: gRPC's context of the call.
            task: the call's task, which is the running one.
            idle: whether the call is a stream of requests, between two of them.

        Raises:
            HeedError: the message did not arrive in time, or there is no memory for it.
        """
        receiver, message = self._receiver, None
        try:
            if idle:
                receiver.begin_idle(task, context.peer())
            elif not receiver.begin(task):
                await receiver.wait_for_place(task, context.peer())
            message = await self._turns.paced(context.read())
        finally:
            # A call that the client has reset or abandoned has no message either.
            if (error := receiver.end(task, has_come=isinstance(message, bytes))) is not None:
                task.uncancel()
                raise error
        return message if isinstance(message, bytes) else None

    async def _write(self, context: Context, message: Any) -> None:
        """Send one message of a stream.

        Raises:
            DeadlineExceeded: the client does not read the message.
        """
        try:
            async with asyncio.timeout(self._receiver.timeout_s):
                await self._write_bytes(context, message.SerializeToString())
        except TimeoutError:
            raise DeadlineExceeded("the client does not read its answer") from None

    async def _write_bytes(self, context: Context, message: bytes) -> None:
        """Send the bytes of one message of a stream, however long the client takes to read it."""
        self._activity.working -= 1
        try:
            await context.write(message)
        finally:
            self._activity.working += 1
        self._activity.writes += 1

    async def _refuse(self, context: Context, name: str, request: Any, request_id: str, error: HeedError) -> None:
        """Count an error, and end the call with its status code."""
        text = str(error)
        if (asked := _asked(name, request)) and not error.counted:
            self._predictor.accounting.count_failure(*asked, "grpc", request_id, outcome_of(error), text)
        metadata: tuple[tuple[str, str], ...] = ((REQUEST_ID_HEADER, request_id),)
        if isinstance(error, Overloaded):
            # gRPC clients that retry by themselves read this (gRFC A6).
            metadata = (*metadata, ("grpc-retry-pushback-ms", str(int(1e3 * error.retry_after_s) + 1)))
        await abort(context, STATUS_OF[type(error)].grpc, text, metadata)


def _with_bytes(handler: Any) -> Any:
    """Return a handler that takes and gives the bytes of messages."""
    return handler._replace(request_deserializer=None, response_serializer=None)


async def abort(context: Context, code: grpc.StatusCode, text: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
    """End a call with an error; do nothing if the client has left."""
    try:
        await context.abort(code, text, metadata)
    except grpc.aio.InternalError:
        return


def _asked(name: str, request: Any) -> tuple[str, str] | None:
    """Return the model and version that a message names, to count its failure; empty if the message is unreadable."""
    if request is None:
        return "", ""
    if name not in TRACED_CALLS:
        return None
    return (request.model_name, request.model_version) if name == "ModelInfer" else (request.model, request.version)


def bounded(limits: MessageLimits, parse: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Build a parser that checks a message's bytes against limits before it parses them."""

    def read(message: bytes) -> T:
        limits.check(message)
        return parse(message)

    return read


def _metadata(context: Context, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else None
    return None
