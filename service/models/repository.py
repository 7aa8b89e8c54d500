"""Keeps the models of the store: their state, their readiness and their batchers.

    folder ──> `service.models.loading` ──> batcher: ready

A folder that fails to load is not served and its problem is reported. The other folders are served all the same.
"""

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from model_store.folder import FolderError, FoundFolder, scan
from service.config import ServiceConfig
from service.engines.device import Device
from service.engines.host import EngineHost
from service.engines.onnx_session import EngineError
from service.engines.preemption import EngineCall
from service.errors import NotFound, Unavailable
from service.models.engine_opening import OpenEngine, open_onnx
from service.models.loaded import BatcherSettings, LoadedModel
from service.models.loading import Loader
from service.process.worker_threads import Watchdog
from service.scheduling.batcher import Batcher
from service.scheduling.continuous_batcher import ContinuousBatcher
from service.tasks.task import Task
from service.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

LOADING = "models are loading"


@dataclass(frozen=True)
class ServedModel:
    """A version of a model that answers requests."""

    name: str
    version: str
    loaded: LoadedModel
    batcher: Batcher | ContinuousBatcher

    @property
    def task(self) -> Task[Any]:
        """The model's task: prepares inputs and turns results into answers."""
        return self.loaded.task


@dataclass
class ModelState:
    """The state of one folder of the store."""

    name: str
    version: str
    served: ServedModel | None = None
    problem: str | None = "loading"  # None while the model would answer correctly

    @property
    def is_loading(self) -> bool:
        """Whether it is not decided yet if the model is served."""
        return self.problem == "loading"

    def current_problem(self) -> str | None:
        """Say why the model would not answer now; None when it would."""
        return self.problem if self.served is None else self.served.batcher.health_problem()


@dataclass
class ModelRepository:
    """All models of one store."""

    config: ServiceConfig
    metrics: Metrics
    num_cores: int
    device: Device = "cpu"
    open_engine: OpenEngine = open_onnx  # opens the engines of models that answer with one call
    ending: bool = False  # not ready, but still answering
    draining: bool = False
    states: dict[tuple[str, str], ModelState] = field(default_factory=dict)
    _newest_first: dict[str, list[ModelState]] = field(default_factory=dict)
    _scanned: bool = False  # before that, the content of the store is not known

    def __post_init__(self) -> None:
        """Divide the cores among engine instances."""
        self.instances, self.threads = self.config.engine_layout(self.num_cores, on_gpu=self.device == "cuda")
        # Where the calling thread does all the work of a call, its CPU time is the cost of the call.
        alone = self.threads == 1 and self.device == "cpu"
        self._engine_clock = time.thread_time if alone else time.monotonic
        self.host, self.watchdog = EngineHost(self.device), Watchdog()
        self.metrics.queue_limit_rows.set(self.config.max_queue)
        self._loader = Loader(
            self.config.max_batch_rows,
            self.threads,
            self._engine_clock,
            self.host,
            self.open_engine,
            state=Path(self.config.state_dir) if self.config.state_dir else None,
        )

    async def load_all(self) -> None:
        """Load every folder of the store, a few at a time; stop when the server drains.

        Raises:
            FolderError: the store itself cannot be read.
        """
        found = scan(self.config.model_store)
        for folder in found:
            state = ModelState(folder.name, folder.version)
            self.states[folder.name, folder.version] = state
            self._newest_first.setdefault(folder.name, []).insert(0, state)
        self._scanned = True
        at_once = asyncio.Semaphore(self.num_cores)

        async def load(folder: FoundFolder) -> None:
            async with at_once:
                if not self.draining:
                    await self._load(folder)

        await asyncio.gather(*(load(folder) for folder in found))

    async def _load(self, folder: FoundFolder) -> None:
        state = self.states[folder.name, folder.version]
        started_s = time.perf_counter()
        try:
            loaded = await self._loaded_in_time(folder)
        except (FolderError, EngineError) as error:
            state.problem = str(error)
        except Exception as error:  # one bad folder must not take the others down, whatever is wrong with it
            log.exception("model failed to load", model=folder.name, version=folder.version)
            state.problem = f"{type(error).__name__}: {error}"
        else:
            if self.draining:
                return  # the served models have already been told to drain
            state.served = self._start(folder, loaded)
            state.problem = None
        ready = self.metrics.ready.labels(folder.name, folder.version)
        ready.set_function(lambda: float(state.current_problem() is None))
        if state.problem:
            log.error(
                "model is not served",
                model=folder.name,
                version=folder.version,
                why=state.problem,
            )
        else:
            seconds = round(time.perf_counter() - started_s, 3)
            served = state.served
            how = {} if served is None else {"batching": served.loaded.batching.describe()}
            if served is not None and served.loaded.precision is not None:
                how["precision"] = served.loaded.precision
            log.info("model ready", model=folder.name, version=folder.version, load_s=seconds, **how)

    async def _loaded_in_time(self, folder: FoundFolder) -> LoadedModel:
        """Load a folder in a thread, and abandon the thread when it takes too long.

        Raises:
            FolderError: the time is up, or the folder must not be served.
            EngineError: ONNX Runtime refuses a graph.
        """
        call, limit_s = EngineCall(), self.config.load_timeout_s
        loop = asyncio.get_running_loop()
        loading: asyncio.Future[LoadedModel] = loop.create_future()

        def end(loaded: LoadedModel | None, error: Exception | None) -> None:
            if loading.done():
                return  # the time was up before
            if loaded is None:
                loading.set_exception(error or FolderError("loading returned nothing"))
            else:
                loading.set_result(loaded)

        def load() -> None:
            loaded, failure = None, None
            try:
                with self.host.preemption.terminable(call):
                    loaded = self._loader.load(folder)
            except Exception as error:  # handed on
                failure = error
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(end, loaded, failure)

        # A daemon thread: one that never returns must not keep another folder waiting, nor the process alive.
        threading.Thread(target=load, name=f"load-{folder.name}", daemon=True).start()
        try:
            return await asyncio.wait_for(loading, limit_s)
        except TimeoutError:
            call.terminate()
            raise FolderError(f"loading took more than {limit_s:g} s (load_timeout_s)") from None

    def _start(self, folder: FoundFolder, loaded: LoadedModel) -> ServedModel:
        labels = (folder.name, folder.version)
        batches = self.metrics.batches(*labels)
        batcher = loaded.open_batcher(
            BatcherSettings(
                config=self.config,
                instances=self.instances,
                engine_clock=self._engine_clock,
                on_batch=lambda report: batches.count(
                    report.rows, report.tokens, report.padded_tokens, report.compute_s
                ),
                tally=self.metrics.scheduling(*labels),
                preemption=self.host.preemption,
                watchdog=self.watchdog,
                name=f"{folder.name}/{folder.version}",
            )
        )
        self.metrics.queue_rows.labels(*labels).set_function(lambda: batcher.queued_rows)
        self.metrics.low_priority_queue_rows.labels(*labels).set_function(lambda: batcher.queued_low_rows)
        self.metrics.in_flight_rows.labels(*labels).set_function(lambda: batcher.in_flight_rows)
        return ServedModel(folder.name, folder.version, loaded, batcher)

    def get(self, name: str, version: str = "") -> ServedModel:
        """Find the model for a request; without a version, the highest one that is ready.

        Raises:
            NotFound: the store has no such model or version.
            Unavailable: the model would not answer correctly now.
        """
        state = self.state(name, version)
        if state.served is None:
            raise Unavailable(f"model {state.name!r} version {state.version!r} is not ready: {state.problem}")
        return state.served

    def state(self, name: str, version: str = "") -> ModelState:
        """Find the state of a folder; without a version, the highest one that is ready, else the highest.

        Raises:
            NotFound: the store has no such model or version.
            Unavailable: the store has not been read yet.
        """
        if not self._scanned:
            raise Unavailable(LOADING)
        if version:
            if (name, version) not in self.states:
                known = ", ".join(self.versions(name)) or "none"
                if not version.isdecimal():  # in the words of Triton, which clients compare
                    raise NotFound(
                        f"failed to get model version from specified version string {version!r} (a version is a whole"
                        f" number); versions of {name!r}: {known}"
                    )
                raise NotFound(f"Request for unknown model: {name!r} version {version!r}; versions here: {known}")
            return self.states[name, version]
        newest_first = self._newest_first.get(name)
        if newest_first is None:
            raise NotFound(f"Request for unknown model: {name!r} is not in the store")
        if len(newest_first) > 1:
            for state in newest_first:
                if state.current_problem() is None:
                    return state
        return newest_first[0]

    def versions(self, name: str) -> list[str]:
        """List the versions of a model that are ready, lowest first."""
        return [s.version for s in reversed(self._newest_first.get(name, ())) if s.current_problem() is None]

    def problems(self) -> dict[str, str]:
        """Map each model version that would not answer now to the reason."""
        found = {f"{s.name}/{s.version}".rstrip("/"): s.current_problem() for s in self.states.values()}
        return {name: problem for name, problem in found.items() if problem is not None}

    def not_ready_because(self) -> str | None:
        """Say why the server as a whole should get no requests now; None when it should.

        A folder that failed to load does not count: its model answers UNAVAILABLE, the others are served. An engine
        that died does count, because only a restart brings it back.
        """
        if self.draining or self.ending:
            return "the server is shutting down"
        if not self._scanned:
            return LOADING
        for state in self.states.values():
            if state.is_loading:
                return LOADING
            if state.served is not None and (trouble := state.served.batcher.health_problem()):
                return f"{state.name}/{state.version}: {trouble}"
        return self.serves_nothing_because()

    def serves_nothing_because(self) -> str | None:
        """Say why a store that has been read gives no model to serve, with its absolute path; None if one is served.

        The server then stays up, unready: whoever watches it reads the reason there, and its metrics and log remain.
        Models that are added later are served after a restart.
        """
        if any(state.served for state in self.states.values()):
            return None
        store = self.config.model_store.absolute()
        if not self.states:
            return f"the model store {store} has no model: put one into {store}/<name>/1/ and start the server again"
        return f"no model could be loaded from the model store {store}"

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones are answered."""
        self.draining = True
        served = [state.served for state in self.states.values() if state.served is not None]
        await asyncio.gather(*(model.batcher.drain() for model in served))

    def close(self) -> None:
        """Stop all engine threads."""
        for state in self.states.values():
            if state.served is not None:
                state.served.batcher.close()
