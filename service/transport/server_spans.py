"""Server spans for HTTP and gRPC requests, with attributes of OpenTelemetry's semantic conventions.

Only requests to a model are traced. Without `--tracing on`, requests do not pass through this module.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

# gRPC calls that are requests to a model.
TRACED_CALLS = ("ModelInfer", "ClassifyText", "ClassifyImage", "Translate", "TranslateStream", "Explain")
# Status codes that the semantic conventions count as errors of the server.
SERVER_ERRORS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


class TracedRoute:
    """ASGI middleware that traces an HTTP route; the span ends with the last byte of the response."""

    def __init__(self, app: ASGIApp, tracing: "Tracing", route: str) -> None:
        self._app, self._tracing, self._route = app, tracing, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request within a span."""
        headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        attributes = {
            "http.request.method": scope["method"],
            "http.route": self._route,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
        }
        status = 0

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.request(f"{scope['method']} {self._route}", headers, attributes) as trace:
            try:
                await self._app(scope, receive, noting_status)
            finally:
                if status:
                    trace.span.set_attribute("http.response.status_code", status)
                trace.end(failed=status >= 500)


def traced_call(handler: Any, method: str, tracing: "Tracing") -> Any:
    """Wrap a gRPC handler so that its calls are traced; `method` is `<service>/<call>`."""
    kind = "stream_unary" if handler.stream_unary else "stream_stream"
    behaviour = getattr(handler, kind)

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        with tracing.request(method, _texts(context), attributes) as trace:
            code = grpc.StatusCode.UNKNOWN
            try:
                reply = await behaviour(request, context)
                code = grpc.StatusCode.OK
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception:
                code = context.code() or code  # the code passed to `abort`
                raise
            finally:
                trace.span.set_attribute("rpc.response.status_code", code.name)
                trace.end(failed=code in SERVER_ERRORS)
            return reply

    return handler._replace(**{kind: answer})


@contextmanager
def traced_request(context: Any, method: str, tracing: "Tracing | None") -> Iterator[None]:
    """Trace one request of a stream; `method` is `<service>/<call>`, and without `tracing` nothing happens."""
    if tracing is None:
        yield
        return
    with tracing.request(method, _texts(context), {"rpc.system.name": "grpc", "rpc.method": method}) as trace:
        try:
            yield
        finally:
            trace.end()


def _texts(context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[tuple[str, str]]:
    """Return the metadata entries whose values are text."""
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            yield key, value
