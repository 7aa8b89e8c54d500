"""The server: opens the sockets of an app, loads its models, serves until SIGTERM.

config ──> app (models, batchers, engines, predictor) ──> HTTP and gRPC
"""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from model_store.folder import FolderError
from service.app import App, build
from service.config import ServiceConfig, address_of, available_cores
from service.engines.device import Device
from service.models.repository import ModelRepository
from service.prediction.predictor import Predictor
from service.process.garbage_collection import freeze_loaded_objects
from service.process.huge_pages import move_to_huge_pages
from service.telemetry.log_writer import write_beside
from service.telemetry.logs import Logs, log_hangup
from service.transport.grpc.server import start_grpc
from service.transport.http.connection import ConnectionLimits
from service.transport.http.server import HttpServer
from service.transport.shutdown import Shutdown, StopSignals
from service.version import installed_version

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

log = structlog.get_logger("service")

# Time to export the last traces after the drain: ample for a collector, and short if it is unreachable.
FLUSH_TRACES_S = 2.0
FLUSH_LOGS_S = 1.0
STANDARD_OUTPUT = 1
HTTP_BACKLOG = 2048  # length of the queue of connections that wait to be accepted


async def serve(config: ServiceConfig, device: Device, logs: Logs) -> int:
    """Listen, load the models and answer; after SIGTERM or SIGINT finish the admitted requests."""
    try:
        tracing = open_tracing() if config.tracing == "on" else None
    except (ImportError, RuntimeError, ValueError) as error:
        log.error("cannot trace", why=str(error))
        return 1
    return await serve_with(config, device, logs, tracing)


async def serve_with(config: ServiceConfig, device: Device, logs: Logs, tracing: "Tracing | None") -> int:
    """Serve with the given tracing, until the process is asked to stop; return its exit status."""
    loop = asyncio.get_running_loop()
    signals = StopSignals(loop)
    stop = signals.first
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, log_hangup)
    app = build(config, available_cores(), device, tracing)
    app.metrics.show_lost_log_lines(lambda: logs.writer.num_lost)
    try:
        http, listener = listen_http(app)
        grpc_server = await start_grpc(app.predictor, config, app.request_memory, app.turns, tracing)
    except (OSError, RuntimeError) as error:
        log.error("cannot listen", why=str(error))
        return 1
    http_url = f"http://{address_of(config.host, listener.getsockname()[1])}"
    http_task = asyncio.create_task(http.serve(sockets=[listener]))
    grpc_address = address_of(config.host, grpc_server.port)
    layout = {"instances": app.repository.instances, "threads_per_instance": app.repository.threads}
    log.info("listening", http=http_url, grpc=grpc_address, device=device, **layout)
    loading = asyncio.create_task(app.repository.load_all())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
    exit_status = 0
    if loading.done():
        try:
            loading.result()
        except FolderError as error:
            log.error("cannot serve", why=str(error))
            stop.set()
            exit_status = 1
        else:
            report_loaded(app.repository, welcome(http_url, grpc_address, app.predictor))
        settle(config, device, stop)
    await run_until(stopping, *app.background_jobs())
    shutdown = Shutdown(config, app.predictor, http, grpc_server, signals.second)
    if loading.done() and exit_status == 0 and config.unready_before_drain_s:
        await shutdown.announce()
    drained, connections_ended = await shutdown.drain(http_task)
    if not drained:
        log.error("stopping with requests unanswered", drain_timeout_s=config.drain_timeout_s)
        exit_status = 1
    app.repository.close()
    await flush_traces(tracing, shutdown.until_s)
    log.info("stopped")
    if not (loading.done() and drained and connections_ended):
        # A thread that reads or proves a model cannot be interrupted, and the interpreter would wait for its end, and
        # for calls that gRPC still holds.
        logs.close(FLUSH_LOGS_S)
        os._exit(exit_status)
    return exit_status


async def run_until(stopping: asyncio.Task[Any], *background: Coroutine[Any, Any, None]) -> None:
    """Run background work until the server is told to stop."""
    tasks = [asyncio.create_task(each) for each in background]
    await stopping
    for task in tasks:
        task.cancel()


def report_loaded(repository: ModelRepository, greeting: str) -> None:
    """Log whether the server is ready, and print the greeting."""
    problem = repository.not_ready_because()
    if nothing := repository.serves_nothing_because():
        log.error("no model is served", why=nothing)
    log.info("loaded", ready=problem is None, why=problem)
    write_beside(STANDARD_OUTPUT, greeting + "\n")


def listen_http(app: App) -> tuple[HttpServer, socket.socket]:
    """Create the HTTP server and bind its socket, so that its port is known.

    Returns:
        The server and its bound socket.

    Raises:
        OSError: the port is taken.
    """
    config = app.config
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.create_server((config.host, config.http_port), family=family, backlog=HTTP_BACKLOG)
    limits = ConnectionLimits(config.max_connections, config.client_timeout_s, app.request_memory, app.turns)
    return HttpServer(app.asgi, limits), listener


def settle(config: ServiceConfig, device: Device, stop: asyncio.Event) -> None:
    """Exclude loaded objects from garbage collection, and move their memory to huge pages in the background."""

    def move() -> None:
        log.info("memory is in huge pages", mib=move_to_huge_pages(stop.is_set) >> 20)

    freeze_loaded_objects()
    # Not with a GPU: its driver has pages of its own in this process, and the weights are in the GPU's memory.
    if device == "cpu" and config.huge_pages == "on":
        threading.Thread(target=move, name="huge-pages", daemon=True).start()


async def flush_traces(tracing: "Tracing | None", until_s: float) -> None:
    """Export the last traces within the rest of the drain's time."""
    if tracing is not None:
        left_s = max(0.0, until_s - time.monotonic())
        await asyncio.to_thread(tracing.close, min(FLUSH_TRACES_S, left_s))


def open_tracing() -> "Tracing":
    """Create the exporter of traces for `--tracing on`.

    Raises:
        ImportError: the optional dependency is not installed.
        ValueError, RuntimeError: an OTEL_* variable is wrong.
    """
    try:
        from service.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ImportError(f"--tracing on needs the extra: pip install 'heed[tracing]' ({error})") from None
    return Tracing(installed_version())


def welcome(http: str, grpc_address: str, predictor: Predictor) -> str:
    """Return the greeting on standard output: URLs, models, and an example request."""
    lines = [f"HTTP  {http}  (in a browser; API: {http}/docs)", f"gRPC  {grpc_address}"]
    if (example := predictor.catalog.example_request()) is not None:
        name, arguments = example
        lines += ["Try:", f"  curl {http}/models/{name} {arguments}"]
    return "\n".join(lines)
