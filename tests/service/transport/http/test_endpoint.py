"""The behaviour that all HTTP calls share, tested with handlers of the tests' own."""

import gzip
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.config import ServiceConfig
from service.errors import EngineFailed, HeedError, NotFound, Overloaded
from service.prediction.predictor import Predictor
from service.process.memory_budget import ByteBudget, Reservation
from service.transport.http.connection import MEMORY
from service.transport.http.endpoint import Endpoint
from service.transport.http.responses import MAX_UNCOUNTED_BYTES
from service.transport.turns import Turns

BUDGET_BYTES = 200_000


class CountingPredictor:
    """A stand-in for the predictor that records the failures counted by the endpoint."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, ...]] = []
        self.accounting = self

    def count_failure(self, *failure: str) -> None:
        """Record a failure."""
        self.failures.append(failure)


class OneHandlerApi:
    """An HTTP API with one handler, which reads the body and then responds or raises as the test has set."""

    def __init__(self, max_body_bytes: int = 100_000) -> None:
        self.predictor, self.budget = CountingPredictor(), ByteBudget("request memory", BUDGET_BYTES)
        config = ServiceConfig(max_body_bytes=max_body_bytes)
        self.endpoint = Endpoint(cast("Predictor", self.predictor), config, Turns())
        self.error: Exception | None = None
        self.response = Response(b"ok")

    async def handle(self, request: Request, request_id: str) -> Response:
        """Respond to one request."""
        await self.endpoint.read_body(request, request_id)
        if self.error is not None:
            raise self.error
        return self.response

    async def ask(self, method: str = "POST", path: str = "/models/m", **options: Any) -> httpx.Response:
        """Send one request through the API's routes."""
        routes = [self.endpoint.inference_route("/models/{model}", self.handle)]
        routes.append(self.endpoint.route("/plain", self.handle))
        application = Starlette(routes=routes, exception_handlers={HTTPException: self.endpoint.no_such_route})

        async def with_memory(scope: Scope, receive: Receive, send: Send) -> None:
            scope[MEMORY] = memory = Reservation(self.budget)
            await application(scope, receive, send)
            memory.release()

        transport = httpx.ASGITransport(with_memory)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)


async def test_a_request_id_comes_back() -> None:
    """The response has the caller's id or a new one."""
    api = OneHandlerApi()
    assert (await api.ask(headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"
    assert (await api.ask()).headers["x-request-id"]


@pytest.mark.parametrize(
    ("error", "status"), [(NotFound("no such model"), 404), (EngineFailed("it failed"), 500)], ids=["404", "500"]
)
async def test_errors_become_responses_and_are_counted_once(error: HeedError, status: int) -> None:
    """Only failures of inference routes are counted, unless the predictor has counted them already."""
    api = OneHandlerApi()
    api.error = error
    response = await api.ask(headers={"x-request-id": "mine"})
    assert (response.status_code, response.json()) == (status, {"error": str(error)})
    assert [failure[:4] for failure in api.predictor.failures] == [("m", "", "http", "mine")]
    assert (await api.ask("GET", "/plain")).status_code == status
    error.counted = True
    assert (await api.ask()).status_code == status
    assert len(api.predictor.failures) == 1


async def test_unexpected_errors_are_not_shown() -> None:
    """The client reads the request id only; the log has the rest."""
    api = OneHandlerApi()
    api.error = ValueError("a secret")
    response = await api.ask(headers={"x-request-id": "mine"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "mine" in response.text


async def test_overload_says_when_to_try_again() -> None:
    """The response gives whole seconds, rounded up."""
    api = OneHandlerApi()
    api.error = Overloaded("the queue is full", retry_after_s=2.5)
    response = await api.ask()
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


async def test_bodies_have_limits() -> None:
    """The limits are size, declared or not, and memory; they hold for compressed and decompressed bodies."""
    api = OneHandlerApi(max_body_bytes=10)

    async def chunks() -> Any:
        for _ in range(3):
            yield b"12345"

    for content in (b"x" * 11, chunks()):
        response = await api.ask(content=content)
        assert response.status_code == 413
        assert response.json()["error"] == "the body is larger than the limit of 10 bytes"
    api = OneHandlerApi(max_body_bytes=100)
    gzipped = {"content-encoding": "gzip"}
    assert (await api.ask(content=gzip.compress(bytes(100)), headers=gzipped)).status_code == 200
    bomb = await api.ask(content=gzip.compress(bytes(101)), headers=gzipped)
    assert (bomb.status_code, "decompressed body is larger than the limit" in bomb.text) == (413, True)
    api = OneHandlerApi(max_body_bytes=2 * BUDGET_BYTES)
    assert (await api.ask(content=b"x" * (BUDGET_BYTES + 1))).status_code == 413
    assert (await api.ask(content=gzip.compress(bytes(BUDGET_BYTES + 1)), headers=gzipped)).status_code == 413
    api.budget.reserve(BUDGET_BYTES // 2)
    assert (await api.ask(content=gzip.compress(bytes(BUDGET_BYTES // 2)), headers=gzipped)).status_code == 429
    api.budget.release(BUDGET_BYTES // 2)
    assert api.budget.reserved_bytes == 0


async def test_the_time_out_header_must_be_a_number() -> None:
    """It must be a whole number of milliseconds above zero."""
    for value in ("soon", "0", "-1", "1" * 19):
        response = await OneHandlerApi().ask(headers={"x-request-timeout-ms": value})
        assert response.status_code == 400
        assert response.json()["error"].startswith("header x-request-timeout-ms must be a whole number")


async def test_long_responses_reserve_memory() -> None:
    """A response that does not fit into the budget is refused."""
    api = OneHandlerApi()
    api.response = Response(b"x" * (MAX_UNCOUNTED_BYTES + 1))
    assert (await api.ask()).status_code == 200
    api.response = Response(b"x" * (BUDGET_BYTES + 1))
    assert (await api.ask()).status_code == 413
    assert api.budget.reserved_bytes == 0


async def test_unknown_paths_and_methods_are_errors_like_others() -> None:
    """The responses have a request id and name the path."""
    for method, path, status, error in (
        ("GET", "/none", 404, "no such path: /none"),
        ("GET", "/models/m", 405, "GET is not allowed on /models/m"),
    ):
        response = await OneHandlerApi().ask(method, path)
        assert (response.status_code, response.json()) == (status, {"error": error})
        assert response.headers["x-request-id"]
