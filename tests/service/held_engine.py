"""An engine whose calls a test holds, counts and fails, in a server without sockets."""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from model_store.folder import ModelFolder
from service.app import App, build
from service.config import ServiceConfig
from service.engines.host import EngineHost
from service.engines.onnx import Engine
from service.engines.onnx_session import EngineError
from service.models.engine_opening import open_onnx
from service.prediction.messages import RequestOptions
from service.tensors import Arrays, TensorSpec
from tests.conftest import ROOT

PATIENCE_S = 10.0  # only a failing test waits this long
MODEL = "sentiment-small"


class HeldEngine:
    """An engine that computes with ONNX Runtime when the test lets it.

    Attributes:
        calls: rows of each call.
        held: whether calls wait for `release`.
        poison: calls whose tokens include this id fail.
        broken: whether all calls fail.
    """

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.calls: list[int] = []
        self.held = self.broken = False
        self.poison: int | None = None
        self._started, self._permits = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the graph."""
        return self._inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the graph."""
        return self._inner.outputs

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that a call may leave out."""
        return self._inner.optional_inputs

    def run(self, feeds: Arrays) -> Arrays:
        """Compute one call, once the test has released it."""
        ids = feeds["input_ids"]
        self.calls.append(len(ids))
        if self.held:
            self._started.release()
            assert self._permits.acquire(timeout=PATIENCE_S)
        if self.broken or (self.poison is not None and (ids == self.poison).any()):
            raise EngineError("the test has broken it")
        return self._inner.run(feeds)

    async def next_call(self) -> int:
        """Wait until a held call has begun, and return its rows."""
        assert await asyncio.to_thread(self._started.acquire, timeout=PATIENCE_S)
        return self.calls[-1]

    def release(self, calls: int = 1) -> None:
        """Let this many calls go on."""
        self._permits.release(calls)


class Engines:
    """Opens engines for a server, and keeps those that the test holds."""

    def __init__(self) -> None:
        self.opened: dict[str, HeldEngine] = {}

    def open(self, folder: ModelFolder, threads: int, host: EngineHost) -> Engine:
        """Open the engine of a folder."""
        self.opened[folder.name] = HeldEngine(open_onnx(folder, threads, host))
        return self.opened[folder.name]


@contextlib.asynccontextmanager
async def held_app(store: Path, *names: str, **options: Any) -> AsyncIterator[tuple[App, HeldEngine]]:
    """Run a server without sockets, with copies of a text classifier whose first engine is returned.

    Args:
        store: an empty folder.
        names: of the copies; `MODEL` if there are none.
        options: of the server.
    """
    for name in names or (MODEL,):
        shutil.copytree(ROOT / "model_store" / MODEL, store / name)
    engines = Engines()
    config = ServiceConfig(model_store=store, canary_interval_s=0.0, **options)
    app = build(config, num_cores=1, open_engine=engines.open)
    async with app.running():
        engine = engines.opened[names[0] if names else MODEL]
        engine.calls.clear()
        try:
            yield app, engine
        finally:
            engine.release(1000)


def request(model: str = MODEL, *, timeout_s: float | None = None) -> RequestOptions:
    """Return the options of a request."""
    return RequestOptions(model=model, version="", protocol="grpc", request_id="1", timeout_s=timeout_s)
