"""Every request is counted once, by the way it ends, before it leaves the number of requests being answered."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from service.config import ServiceConfig
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    HeedError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from service.prediction.accounting import DEADLINE_SLACK_S, Accounting
from service.prediction.messages import RequestOptions
from service.scheduling.admission import ItemResult

OPTIONS = RequestOptions(model="m", version="", protocol="grpc", request_id="1", timeout_s=60.0)


class Server:
    """Stand-ins for the repository, the metrics, the idle executor and the tracing, which write down their calls."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.draining = False
        self.model = SimpleNamespace(
            name="m",
            version="3",
            batcher=SimpleNamespace(joins_running_batches=False),
            task=SimpleNamespace(elements_are_rows=True),
        )
        self.accounting = Accounting(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            ServiceConfig(log_level="debug"),
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
        )

    def get(self, name: str, version: str) -> Any:
        """Return the only model."""
        return self.model

    def state(self, name: str, version: str) -> Any:
        """Return the state of the only model."""
        return self.model

    def answering(self) -> None:
        """A request began."""
        self.events.append("answering")

    def answered(self, *args: Any, **options: Any) -> None:
        """A request ended; with arguments, the trace of an answer."""
        self.events.append("trace answered" if args else "answered")

    def count(self, *labels: str) -> None:
        """A request was counted."""
        self.events.append(("count", *labels))

    def add_failed_time(self, model: str, version: str, seconds: float) -> None:
        """The time of a failed request was counted."""

    def stages(self, *labels: str) -> Any:
        """Return the histograms of a model."""
        return SimpleNamespace(
            inferences=0,
            last_s=0.0,
            observe=lambda *times_s: self.events.append("observe"),
            exemplify=lambda *args, **times_s: self.events.append("exemplify"),
        )

    def current(self) -> Any:
        """Return the trace of the request."""
        return SimpleNamespace(
            answered=self.answered,
            sampled_trace_id="1",
            refused=lambda *args: self.events.append(("trace refused", args[3])),
            stage_failed=lambda name, since_s, why: self.events.append(("trace failed", name)),
        )


def computed_item() -> ItemResult:
    """Return the result of an item."""
    batch = SimpleNamespace(compute_s=0.5, rows=2, padded_tokens=8, tokens=8)
    return SimpleNamespace(result="answer", queue_s=0.25, batch=batch)  # type: ignore[return-value]


def answer_request(server: Server, *, explains: bool = False) -> Any:
    """Account for a request that gets its answer."""
    with server.accounting.open(OPTIONS, explains=explains) as account:
        account.get_model()
        account.preprocessed([SimpleNamespace(truncated=True)])
        assert account.computed([computed_item()]) == ["answer"]
    return account.receipt


def fail_request(server: Server, error: BaseException, *, options: RequestOptions = OPTIONS, stage: str) -> None:
    """Account for a request that fails in a stage."""
    with server.accounting.open(options) as account:
        account.get_model()
        if stage == "submit":
            account.preprocessed([])
        raise error


def test_an_answer_is_counted_observed_traced_and_logged_in_this_order() -> None:
    """The request leaves the number of requests being answered first."""
    server = Server()
    with structlog.testing.capture_logs() as logs:
        receipt = answer_request(server)
    assert server.events == [
        "answering",
        "answered",
        ("count", "m", "3", "grpc", "ok"),
        "observe",
        "trace answered",
        "exemplify",
    ]
    assert (receipt.model_version, receipt.queue_us, receipt.compute_us, receipt.batch_size) == ("3", 250000, 500000, 2)
    assert receipt.truncated
    assert [(entry["event"], entry["model"]) for entry in logs] == [("request answered", "m")]


def test_an_explanation_neither_pauses_background_work_nor_enters_the_times_of_predictions() -> None:
    """It is counted and traced like an answer."""
    server = Server()
    answer_request(server, explains=True)
    assert server.events == [("count", "m", "3", "grpc", "ok"), "trace answered"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidRequest("x"), "invalid"),
        (NotFound("x"), "not_found"),
        (Unavailable("x"), "unavailable"),
        (Overloaded("x", 1.0), "overloaded"),
        (DeadlineExceeded("x"), "expired"),
        (EngineFailed("x"), "failed"),
        (ValueError("x"), "failed"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
@pytest.mark.parametrize("stage", ["preprocess", "submit"])
def test_an_error_is_counted_by_its_type_and_traced_in_its_stage(
    error: BaseException, outcome: str, stage: str
) -> None:
    """The error goes on to the transport, marked as counted; the request leaves last."""
    server = Server()
    with pytest.raises(type(error)):
        fail_request(server, error, stage=stage)
    has_stage = stage == "submit" or outcome not in ("not_found", "unavailable")
    assert server.events == [
        "answering",
        ("count", "m", "3", "grpc", outcome),
        ("trace refused", outcome),
        *([("trace failed", stage)] if has_stage else []),
        "answered",
    ]
    assert not isinstance(error, HeedError) or error.counted


def test_a_cancellation_at_the_deadline_counts_as_expired() -> None:
    """The client's clock may be a little ahead of ours."""
    server = Server()
    options = RequestOptions("m", "", "grpc", "1", timeout_s=DEADLINE_SLACK_S / 2)
    with pytest.raises(asyncio.CancelledError):
        fail_request(server, asyncio.CancelledError(), options=options, stage="submit")
    assert ("count", "m", "3", "grpc", "expired") in server.events


async def test_a_draining_server_refuses_requests_and_waits_for_those_it_has_admitted() -> None:
    """The refused one does not count among them."""
    server = Server()
    with server.accounting.open(OPTIONS) as admitted:
        admitted.get_model()
        server.draining = True
        waiting = asyncio.create_task(server.accounting.wait_until_answered())
        with pytest.raises(Unavailable, match="the server is shutting down"), server.accounting.open(OPTIONS) as late:
            late.get_model()
        await asyncio.sleep(0)
        assert not waiting.done()
        admitted.preprocessed([SimpleNamespace(truncated=False)])
        admitted.computed([computed_item()])
    await waiting
