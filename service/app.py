"""The server without sockets, for embedding in another serving system, a notebook or a test.

    app = build(ServiceConfig(model_store=Path("model_store")), num_cores=2)
    async with app.running():
        answers, receipt = await app.predictor.answer(options, TextClassification, ["A wonderful film."])

`app.asgi` is the whole HTTP interface as an ASGI application. Use everything in the event loop that calls `running`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.types import ASGIApp

from service.config import ServiceConfig
from service.engines.device import Device
from service.models.canary import Canary
from service.models.engine_opening import OpenEngine, open_onnx
from service.models.repository import ModelRepository
from service.prediction.predictor import Predictor
from service.process.allocator import MemoryReturn
from service.process.memory_budget import ByteBudget
from service.telemetry.metrics import Metrics
from service.transport.http.application import build_application
from service.transport.http.endpoint import Endpoint
from service.transport.http.server import with_memory
from service.transport.turns import Turns

if TYPE_CHECKING:  # tracing needs an optional dependency
    from service.telemetry.tracing import Tracing


@dataclass(frozen=True, kw_only=True)
class App:
    """A server without sockets.

    Attributes:
        config: its options; options of sockets and connections have no effect here.
        metrics: its Prometheus metrics.
        repository: its models.
        predictor: answers requests.
        request_memory: budget for the bodies and messages that all transports hold together.
        turns: queue for the long steps of all transports.
        tracing: exporter of spans, if any.
        http: routes of the HTTP interface.
    """

    config: ServiceConfig
    metrics: Metrics
    repository: ModelRepository
    predictor: Predictor
    request_memory: ByteBudget
    turns: Turns
    tracing: "Tracing | None"
    http: Starlette

    @property
    def asgi(self) -> ASGIApp:
        """The HTTP interface as an ASGI application, within the memory budget for requests."""
        return with_memory(self.http, self.request_memory)

    def background_jobs(self) -> list[Coroutine[Any, Any, None]]:
        """Return the background work of a running server, to be run as tasks."""

        def is_busy() -> bool:
            return self.request_memory.reserved_bytes > 0 or self.predictor.holds_image_memory

        jobs = [MemoryReturn(is_busy).run()]
        if self.config.canary_interval_s:
            jobs.append(Canary(self.repository, self.metrics, self.config.canary_interval_s).run())
        return jobs

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the models, answer requests while the block runs, and then finish admitted requests.

        Raises:
            FolderError: the store cannot be read.
        """
        background = list[asyncio.Task[None]]()
        try:
            await self.repository.load_all()
            background += [asyncio.create_task(job) for job in self.background_jobs()]
            yield
        finally:
            for task in background:
                task.cancel()
            await self.predictor.drain()
            self.repository.close()


def build(
    config: ServiceConfig,
    num_cores: int,
    device: Device = "cpu",
    tracing: "Tracing | None" = None,
    open_engine: OpenEngine = open_onnx,
) -> App:
    """Build a server without sockets; its models are loaded when it runs.

    Args:
        config: options of the server.
        num_cores: cores that engines and preprocessing may use.
        device: device that computes the models.
        tracing: records a span for each inference request; None turns tracing off.
        open_engine: opens the engines of models that answer with one call.
    """
    metrics = Metrics()
    repository = ModelRepository(config, metrics, num_cores=num_cores, device=device, open_engine=open_engine)
    predictor = Predictor(repository, metrics, config, tracing)
    request_memory, turns = ByteBudget("request memory", config.max_request_memory_bytes), Turns()
    metrics.show_budget(request_memory)
    return App(
        config=config,
        metrics=metrics,
        repository=repository,
        predictor=predictor,
        request_memory=request_memory,
        turns=turns,
        tracing=tracing,
        http=build_application(Endpoint(predictor, config, turns, tracing), metrics),
    )
