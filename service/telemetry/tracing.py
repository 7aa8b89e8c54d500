"""OpenTelemetry traces: a server span for each request, a child span for each of its stages, exported by OTLP.

    transport: request() ──> predictor: answered() or refused() ──> transport: the end of request()

Only this module imports OpenTelemetry. It is imported with `--tracing on` and needs the extra `tracing`. Stages are not
wrapped while they run: their spans are made afterwards, from the times in the receipt. Everything else is configured by
the standard OTEL_* variables.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.telemetry.tallies import Outcome

Attributes = Mapping[str, str | int | bool]

# Outcomes that are failures of the server. The others are errors of the caller and leave the status of a server span
# unset, as the semantic conventions require for 4xx.
SERVER_FAULTS: frozenset[Outcome] = frozenset(("unavailable", "overloaded", "expired", "failed"))
# Most engine calls that are shown of one request: the last ones to end.
MAX_CALLS_SHOWN = 8
FLUSH_END_TIMEOUT_S = 1.0  # longest wait for a flush that was told to end
# Standard variables of which only some values are supported: variable, supported values, meaning.
SUPPORTED_SETTINGS = (
    ("OTEL_TRACES_EXPORTER", ("otlp",), "exporter"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", ("grpc",), "protocol"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", ("grpc",), "protocol"),
)


class EngineCall(Protocol):
    """An engine call as spans describe it."""

    @property
    def rows(self) -> int:
        """The rows of all requests in the call."""

    @property
    def tokens(self) -> int:
        """The computed tokens, including padding if the engine computes it."""

    @property
    def compute_s(self) -> float:
        """The duration of the call."""


class ComputedRow(Protocol):
    """A row of a request as spans describe it."""

    @property
    def queue_s(self) -> float:
        """The time that the row waited for its engine call."""

    @property
    def batch(self) -> EngineCall:
        """The engine call that computed the row."""


class RequestTrace:
    """The spans of one request. Times are on the clock of `time.monotonic()`."""

    def __init__(self, tracer: Tracer, name: str, parent: Context, attributes: Attributes) -> None:
        self._began_ns, self._began_s = time.time_ns(), time.monotonic()
        self._tracer = tracer
        self._span = tracer.start_span(name, parent, SpanKind.SERVER, dict(attributes), start_time=self._began_ns)
        self._context = set_span_in_context(self._span)
        self._outcome: Outcome | None = None

    @property
    def span(self) -> Span:
        """The server span, to which the transport adds attributes."""
        return self._span

    @property
    def sampled_trace_id(self) -> str | None:
        """The trace id in hexadecimal digits; None if the request is not sampled."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.trace_flags.sampled else None

    def first_piece(self) -> None:
        """Record that a stream sends its first piece."""
        self._span.add_event("first piece")

    def answered(
        self,
        model: str,
        version: str,
        request_id: str,
        done: Sequence[ComputedRow],
        times_s: tuple[float, float, float, float],
        *,
        in_flight: bool,
        explained: bool = False,
    ) -> None:
        """Record the stages of an answered request.

        Args:
            model: name of the model.
            version: version of the model.
            request_id: the request's id.
            done: the computed rows or sentences.
            times_s: when preprocessing began, the batcher got the rows, the batcher returned them, and the answer was
                complete.
            in_flight: whether the rows were decoded step by step in a running batch.
            explained: whether only the first row is the answer, and the others were computed to explain it.
        """
        if not self._span.is_recording():
            return
        self._describe(model, version, request_id, "ok")
        started_s, prepared_s, computed_s, ended_s = times_s
        self._stage("preprocess", started_s, prepared_s)
        calls = {id(row.batch): row for row in done}  # rows of one engine call share one object
        shown = done[:1] if explained else calls.values()
        last = sorted(shown, key=lambda row: row.queue_s + row.batch.compute_s)[-MAX_CALLS_SHOWN:]
        for row in last:
            taken_s = min(prepared_s + row.queue_s, computed_s)
            self._stage("queue", prepared_s, taken_s)
            batch = {"heed.batch.rows": row.batch.rows, "heed.batch.tokens": row.batch.tokens}
            given_back_s = min(taken_s + row.batch.compute_s, computed_s)
            self._stage("decode" if in_flight else "compute", taken_s, given_back_s, batch)
        if explained:
            self._stage("explain", given_back_s, computed_s)
        self._stage("postprocess", computed_s, ended_s)
        self._span.set_attribute("heed.engine_calls", len(calls))
        self._span.set_attribute("heed.batch.rows", last[-1].batch.rows)
        self._span.set_attribute("heed.batch.tokens", last[-1].batch.tokens)

    def refused(self, model: str, version: str, request_id: str, outcome: Outcome, why: str) -> None:
        """Record that the request has ended without an answer."""
        self._describe(model, version, request_id, outcome)
        self._span.set_attribute("error.type", outcome)
        if outcome in SERVER_FAULTS:
            self._span.set_status(StatusCode.ERROR, why)

    def stage_failed(self, name: str, since_s: float, why: str) -> None:
        """Record a stage that has just ended with an error."""
        self._stage(name, since_s, time.monotonic(), why=why)

    def end(self, *, failed: bool = False) -> None:
        """End the request's span; `failed` says that the transport regards the server as the cause."""
        ended_s = time.monotonic()
        if self._outcome is None:
            # When a client leaves a stream, the predictor learns of it only in the next iteration of the event loop.
            asyncio.get_running_loop().call_soon(self._end, ended_s, failed)
        else:
            self._end(ended_s, failed)

    def _end(self, ended_s: float, failed: bool) -> None:
        if failed and self._outcome not in SERVER_FAULTS:
            self._span.set_attribute("error.type", "failed")
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._ns(ended_s))

    def _describe(self, model: str, version: str, request_id: str, outcome: Outcome) -> None:
        self._outcome = outcome
        self._span.set_attributes(
            {
                "heed.model.name": model,
                "heed.model.version": version,
                "heed.request_id": request_id,
                "heed.outcome": outcome,
            }
        )

    def _stage(
        self, name: str, started_s: float, ended_s: float, attributes: Attributes | None = None, why: str | None = None
    ) -> None:
        given = dict(attributes) if attributes else None
        span = self._tracer.start_span(name, self._context, attributes=given, start_time=self._ns(started_s))
        if why is not None:
            span.set_status(StatusCode.ERROR, why)
        span.end(self._ns(ended_s))

    def _ns(self, monotonic_s: float) -> int:
        """Convert a time to the clock of spans, which is read once for each request so that its stages add up."""
        return self._began_ns + round(1e9 * (monotonic_s - self._began_s))


class Tracing:
    """Makes and exports the spans of one server."""

    def __init__(self, server_version: str) -> None:
        """Start to export. Requests never wait for the collector; spans that it does not take in time are dropped.

        Raises:
            ValueError: a standard variable has a value that is not supported.
        """
        for variable, offered, what in SUPPORTED_SETTINGS:
            if (given := os.environ.get(variable) or offered[0]) not in offered:
                raise ValueError(f"{variable} is {given!r}; the {what} offered is {' or '.join(offered)}")
        resource = Resource.create({SERVICE_VERSION: server_version})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "heed"}))
        # OTEL_TRACES_SAMPLER chooses the sampler. By default the caller decides; requests without a trace are sampled.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("heed", server_version)
        self._propagator = TraceContextTextMapPropagator()
        self._current: ContextVar[RequestTrace | None] = ContextVar("heed.trace", default=None)

    def current(self) -> RequestTrace | None:
        """Return the trace of the current request, or None outside of a request."""
        return self._current.get()

    @contextmanager
    def request(self, name: str, headers: Iterable[tuple[str, str]], attributes: Attributes) -> Iterator[RequestTrace]:
        """Start the trace of a request that has just arrived; the caller must call its `end`.

        Args:
            name: name of the span.
            headers: the request's headers in lower case; `traceparent` and `tracestate` continue the caller's trace.
            attributes: attributes of the span that are known on arrival.
        """
        carrier: dict[str, list[str]] = {}
        for key, value in headers:
            if key in ("traceparent", "tracestate"):
                carrier.setdefault(key, []).append(value)
        trace = RequestTrace(self._tracer, name, self._propagator.extract(carrier, Context()), attributes)
        token = self._current.set(trace)
        try:
            yield trace
        finally:
            self._current.reset(token)

    def close(self, timeout_s: float) -> None:
        """Export the remaining spans for at most `timeout_s`, and drop the rest."""
        flushing = threading.Thread(target=self._provider.shutdown, name="flush-traces", daemon=True)
        flushing.start()
        flushing.join(timeout_s)
        if flushing.is_alive():
            self._exporter.shutdown()  # ends a waiting call, and with it the flush
            flushing.join(FLUSH_END_TIMEOUT_S)
