"""Counts, logs and traces every request, however it ends.

    with accounting.open(options) as account:
        get_model ──> preprocessed ──> computed ──> end of the block: count, log, trace, receipt

Only the `with` block is accounted: an exception that leaves it is counted by its type.
"""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import structlog

from service.config import ServiceConfig
from service.errors import (
    DeadlineExceeded,
    HeedError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
    Unsupported,
    clipped,
)
from service.models.repository import ModelRepository, ServedModel
from service.prediction.messages import Explanation, Receipt, RequestOptions
from service.scheduling.admission import ItemResult
from service.scheduling.idle_executor import IdleExecutor
from service.telemetry.metrics import UNKNOWN_MODEL, Metrics
from service.telemetry.tallies import Outcome, Protocol

if TYPE_CHECKING:  # tracing needs an optional dependency
    from service.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

# A cancellation within this time of the deadline counts as expired: the clocks of client and server run side by side,
# and the client's cancellation may arrive before our own timer.
DEADLINE_SLACK_S = 0.01

OUTCOME_OF: dict[type[HeedError], Outcome] = {
    InvalidRequest: "invalid",
    NotFound: "not_found",
    Unavailable: "unavailable",
    Overloaded: "overloaded",
    DeadlineExceeded: "expired",
    Unsupported: "invalid",
}


def outcome_of(error: HeedError) -> Outcome:
    """Return the outcome that an error is counted as."""
    return next((known for kind, known in OUTCOME_OF.items() if isinstance(error, kind)), "failed")


class RequestAccount:
    """Context manager that times the stages of one request and accounts for its end.

    A plain class, because contextlib's generators cost more on every request. After the block, `receipt` is set.
    """

    __slots__ = (
        "_accounting",
        "_admitted",
        "_repository",
        "computed_s",
        "deadline_s",
        "done",
        "ended_s",
        "explains",
        "items",
        "model",
        "model_name",
        "options",
        "prepared_s",
        "receipt",
        "started_s",
        "timeout_s",
        "version",
    )

    model: ServedModel
    items: Sequence[Any]
    done: list[ItemResult]
    receipt: Receipt

    def __init__(
        self,
        accounting: "Accounting",
        repository: ModelRepository,
        options: RequestOptions,
        timeout_s: float,
        *,
        explains: bool,
    ) -> None:
        """Prepare; the clock starts when the block is entered.

        Args:
            accounting: counters of the server.
            repository: models to choose from.
            options: options of the request.
            timeout_s: time that the request may take.
            explains: whether the request asks for an explanation, which is computed at low priority.
        """
        self._accounting, self._repository = accounting, repository
        self.options, self.timeout_s, self.explains = options, timeout_s, explains
        self.model_name, self.version = options.model, options.version  # as the client names them, until `get_model`

    def __enter__(self) -> Self:
        """Admit the request unless the server is draining, and start its clock."""
        self.started_s = self.prepared_s = time.monotonic()
        self.deadline_s = self.started_s + self.timeout_s
        self._admitted = self._accounting.request_began(urgent=not self.explains)
        return self

    def get_model(self) -> ServedModel:
        """Return the model that the request names.

        Raises:
            Unavailable: the server is shutting down, or the model is not ready.
            NotFound: the store has no such model or version.
        """
        if not self._admitted:
            raise Unavailable("the server is shutting down")
        self.model = model = self._repository.get(self.model_name, self.version)
        self.model_name, self.version = model.name, model.version
        return model

    @property
    def num_inferences(self) -> int:
        """Number of inputs that the request has: texts, images, or rows of tensors."""
        if self.model.task.elements_are_rows:
            return len(self.items)  # the beams of a translation are rows, but no inputs
        return sum([item.rows for item in self.items])

    def preprocessed(self, items: Sequence[Any]) -> None:
        """Record the end of preprocessing, and the items that go to the batcher."""
        self.items, self.prepared_s = items, time.monotonic()

    def computed(self, done: list[ItemResult]) -> list[Any]:
        """Record the end of the computation, and return the results of the items."""
        self.done, self.computed_s = done, time.monotonic()
        return [entry.result for entry in done]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Account for the request: an answer, or the exception that leaves the block."""
        if error is None:
            self.ended_s = time.monotonic()
            self._accounting.request_ended(self._admitted, urgent=not self.explains)
            self.receipt = self._make_receipt()
            self._accounting.count_answer(self)
            return
        try:
            self._count_error(error)
        finally:
            self._accounting.request_ended(self._admitted, urgent=not self.explains)

    def _count_error(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            # gRPC cancels a call whose deadline has passed just like one that the client has cancelled.
            past_deadline = time.monotonic() - self.started_s >= self.timeout_s - DEADLINE_SLACK_S
            outcome: Outcome = "expired" if past_deadline else "cancelled"
            self._accounting.count_refusal(self, outcome, "the call has been cancelled")
        elif isinstance(error, HeedError):
            self._accounting.count_refusal(self, outcome_of(error), str(error))
            error.counted = True
        elif isinstance(error, Exception):
            self._accounting.count_refusal(self, "failed", "unexpected error")

    def _make_receipt(self) -> Receipt:
        done = self.done
        queue_s, batch, truncated = done[0].queue_s, done[0].batch, False
        for other in done:
            queue_s = max(queue_s, other.queue_s)
            if other.batch.rows > batch.rows:
                batch = other.batch
        for item in self.items:
            truncated = truncated or item.truncated
        return Receipt(
            model_version=self.version,
            preprocess_us=int(1e6 * (self.prepared_s - self.started_s)),
            queue_us=int(1e6 * queue_s),
            compute_us=int(1e6 * batch.compute_s),
            postprocess_us=int(1e6 * (self.ended_s - self.computed_s)),
            batch_size=batch.rows,
            padded_tokens=batch.padded_tokens,
            batch_tokens=batch.tokens,
            truncated=truncated,
        )


class Accounting:
    """Metrics, logs and traces of all requests, and the number that are being answered."""

    def __init__(
        self,
        repository: ModelRepository,
        metrics: Metrics,
        config: ServiceConfig,
        idle_executor: IdleExecutor,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Start with no request.

        Args:
            repository: models that are served.
            metrics: counters of the server.
            config: default timeout and log level.
            idle_executor: pauses while ordinary requests are being answered.
            tracing: exporter of spans, if any.
        """
        self._repository, self._metrics, self._idle_executor = repository, metrics, idle_executor
        self._tracing = tracing
        self._default_timeout_s = config.default_timeout_s
        # Read once: even a log line that is dropped costs time on every request.
        self._log_answers = config.log_level == "debug"
        self._num_answering = 0  # admitted requests without an answer yet, whatever stage they are in
        self._all_answered = asyncio.Event()

    def open(self, options: RequestOptions, *, explains: bool = False) -> RequestAccount:
        """Return the account of a request, to be used in a `with` statement.

        Args:
            options: options of the request.
            explains: whether it asks for an explanation, whose times are kept apart from those of predictions.
        """
        timeout_s = self._default_timeout_s if options.timeout_s is None else options.timeout_s
        return RequestAccount(self, self._repository, options, timeout_s, explains=explains)

    async def wait_until_answered(self) -> None:
        """Return when all admitted requests have been answered, while the repository drains."""
        if self._num_answering:
            await self._all_answered.wait()

    def request_began(self, *, urgent: bool) -> bool:
        """Register a request and return whether it is admitted; an urgent one pauses background work."""
        admitted = not self._repository.draining
        self._num_answering += admitted
        if urgent:
            self._idle_executor.answering()
        return admitted

    def request_ended(self, admitted: bool, *, urgent: bool) -> None:
        """Remove a request that `request_began` has registered."""
        if urgent:
            self._idle_executor.answered()
        self._num_answering -= admitted
        if self._repository.draining and not self._num_answering:
            self._all_answered.set()

    def count_answer(self, account: RequestAccount) -> None:
        """Count, trace and log a request that has its answer."""
        options, name, version, receipt = account.options, account.model_name, account.version, account.receipt
        self._metrics.count(name, version, options.protocol, "ok")
        if not account.explains:
            stages = self._metrics.stages(name, version, options.protocol)
            stages.inferences += account.num_inferences
            stages.last_s = account.ended_s
            stages.observe(
                account.ended_s - account.started_s,
                account.prepared_s - account.started_s,
                receipt.queue_us * 1e-6,
                receipt.compute_us * 1e-6,
                account.ended_s - account.computed_s,
            )
        if self._tracing is not None:
            self._trace_answer(account)
        if self._log_answers:
            log.debug("request answered", request_id=options.request_id, model=name, **receipt.as_dict())

    def count_explanation(self, account: RequestAccount, explanation: Explanation) -> None:
        """Count an explanation, the time it took and its evaluations of the model."""
        tally = self._metrics.explained(account.options.model, account.receipt.model_version, explanation.method)
        tally.count(time.monotonic() - account.started_s, explanation.fidelity.evaluations)

    def count_refusal(self, account: RequestAccount, outcome: Outcome, why: str) -> None:
        """Count, log and trace a request that ends without an answer, and the stage it failed in."""
        options = account.options
        seconds = time.monotonic() - account.started_s
        asked = (account.model_name, account.version, options.protocol, options.request_id)
        self.count_failure(*asked, outcome, why, seconds)
        if self._tracing is None or (trace := self._tracing.current()) is None:
            return
        if account.prepared_s != account.started_s:
            # A batcher that raises does not report how long the request waited and how long it was computed.
            trace.stage_failed("submit", account.prepared_s, why)
        elif outcome not in ("not_found", "unavailable"):  # without a model there was no preprocessing
            trace.stage_failed("preprocess", account.started_s, why)

    def count_failure(
        self,
        model: str,
        version: str,
        protocol: Protocol,
        request_id: str,
        outcome: Outcome,
        why: str,
        seconds: float = 0.0,
    ) -> None:
        """Count, log and trace a request that ends without an answer.

        Args:
            model: name as the client wrote it.
            version: version as the client wrote it, or empty.
            protocol: protocol of the request.
            request_id: id of the request.
            outcome: label of the counter.
            why: text of the error.
            seconds: time that the request took, as far as it was measured.
        """
        log.info("request refused", request_id=request_id, model=clipped(model), outcome=outcome, why=why)
        try:
            state = self._repository.state(model, version)
        except (NotFound, Unavailable):
            model, version = UNKNOWN_MODEL, ""
        else:
            model, version = state.name, state.version
        self._metrics.count(model, version, protocol, outcome)
        self._metrics.add_failed_time(model, version, seconds)
        if self._tracing is not None and (trace := self._tracing.current()) is not None:
            trace.refused(model, version, request_id, outcome, why)

    def trace_first_piece(self) -> None:
        """Mark in the trace that a stream has its first piece of text."""
        if self._tracing is not None and (trace := self._tracing.current()) is not None:
            trace.first_piece()

    def _trace_answer(self, account: RequestAccount) -> None:
        """Record the spans of an answer's stages, and link their histograms to the trace if it is sampled."""
        if self._tracing is None or (trace := self._tracing.current()) is None:
            return
        model, options, receipt = account.model, account.options, account.receipt
        trace.answered(
            model.name,
            model.version,
            options.request_id,
            account.done,
            (account.started_s, account.prepared_s, account.computed_s, account.ended_s),
            in_flight=model.batcher.joins_running_batches,
            explained=account.explains,
        )
        if account.explains or (trace_id := trace.sampled_trace_id) is None:
            return
        self._metrics.stages(model.name, model.version, options.protocol).exemplify(
            trace_id,
            preprocess=account.prepared_s - account.started_s,
            queue=receipt.queue_us * 1e-6,
            compute=receipt.compute_us * 1e-6,
            postprocess=account.ended_s - account.computed_s,
            total=account.ended_s - account.started_s,
        )
