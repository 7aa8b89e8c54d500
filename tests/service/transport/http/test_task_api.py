"""Streams of the task API with a stand-in for the predictor: errors and the end."""

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from service.config import ServiceConfig
from service.errors import DeadlineExceeded, NotFound
from service.prediction.predictor import Predictor
from service.process.memory_budget import ByteBudget, Reservation
from service.tasks.translation import Translation
from service.transport.http.connection import MEMORY
from service.transport.http.endpoint import Endpoint
from service.transport.http.task_api import TaskApi
from service.transport.turns import Turns
from tests.conftest import ROOT

TASK = Translation(
    (ROOT / "model_store/translation-en-de/1/tokenizer.json").read_text(),
    max_tokens=256,
    bos_id=1,
    eos_id=2,
    source_language="en",
    target_language="de",
)


class StreamingPredictor:
    """Streams a translation that ends with an error."""

    def __init__(self, pieces: list[str], error: Exception) -> None:
        self.pieces, self.error = pieces, error
        self.closed = False
        self.catalog = self.accounting = self

    def hub_task(self, name: str) -> Translation:
        """Return the only task that streams."""
        return TASK

    def count_failure(self, *failure: str) -> None:
        """Count nothing."""

    async def stream_translation(self, *request: Any) -> AsyncGenerator[str, None]:
        """Yield the pieces, then raise the error."""
        try:
            for piece in self.pieces:
                yield piece
            raise self.error
        finally:
            self.closed = True


async def ask(predictor: StreamingPredictor) -> httpx.Response:
    """Request a stream."""
    endpoint = Endpoint(cast("Predictor", predictor), ServiceConfig(), Turns())
    application = Starlette(routes=TaskApi(endpoint).routes())

    async def with_memory(scope: Scope, receive: Receive, send: Send) -> None:
        scope[MEMORY] = memory = Reservation(ByteBudget("request memory", 10**6))
        await application(scope, receive, send)
        memory.release()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(with_memory), base_url="http://test") as client:
        request = {"inputs": "a text", "stream": True}
        return await client.post("/models/m", json=request, headers={"x-request-id": "mine"})


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DeadlineExceeded("the deadline passed"), "the deadline passed"),
        (ValueError("a secret"), "internal error"),
    ],
    ids=["expected", "unexpected"],
)
async def test_an_error_within_a_stream_is_its_last_event(error: Exception, text: str) -> None:
    """The status has been sent by then; unexpected errors are only in the log."""
    predictor = StreamingPredictor(["eins ", "zwei"], error)
    response = await ask(predictor)
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
    events = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-1]]
    assert events[:2] == [{"text": "eins "}, {"text": "zwei"}]
    assert text in events[2]["error"]
    assert "secret" not in response.text
    assert len(events) == 3
    assert predictor.closed


async def test_an_error_before_a_streams_first_piece_has_its_status() -> None:
    """No event has been sent yet."""
    response = await ask(StreamingPredictor([], NotFound("no such model")))
    assert (response.status_code, response.json()) == (404, {"error": "no such model"})
