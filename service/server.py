"""The server: builds everything, wires it together, serves until SIGTERM.

config ──> metrics ──> repository (models, batchers, engines) ──> predictor ──> HTTP and gRPC
"""

import asyncio
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import structlog

from model_store.folder import FolderError
from service.canary import Canary
from service.config import ServiceConfig, address_of, available_cores
from service.device import Device
from service.memory import keep_out_of_collections, move_to_huge_pages
from service.memory_budget import ByteBudget
from service.metrics import Metrics
from service.predictor import Predictor
from service.repository import ModelRepository
from service.transport import server_version
from service.transport.grpc_server import GrpcServer, start_grpc
from service.transport.http_server import build_http

if TYPE_CHECKING:
    from service.tracing import Tracing

log = structlog.get_logger("service")

REFUSING_S = 0.1  # after SIGTERM, for gRPC calls that are on their way
# After the drain, for the last traces: far more than a collector takes, and not long to wait for one that is away.
FLUSH_TRACES_S = 2.0


async def serve(config: ServiceConfig, device: Device) -> int:
    """Listen, load the models, answer; after SIGTERM or SIGINT finish what was admitted."""
    try:
        tracing = open_tracing() if config.tracing == "on" else None
    except (ImportError, RuntimeError, ValueError) as error:
        log.error("cannot trace", why=str(error))
        return 1
    return await serve_with(config, device, tracing)


async def serve_with(config: ServiceConfig, device: Device, tracing: "Tracing | None") -> int:
    """The same, with the traces that are asked for."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    repository = ModelRepository(config, metrics := Metrics(), num_cores=available_cores(), device=device)
    predictor = Predictor(repository, metrics, config, tracing)
    try:
        request_memory = request_memory_budget(config, metrics)
        http, listener = build_http(predictor, metrics, config, request_memory, tracing)
        grpc_server = await start_grpc(predictor, config, request_memory, tracing)
    except (OSError, RuntimeError) as error:
        log.error("cannot listen", why=str(error))
        return 1
    http_url = f"http://{address_of(config.host, listener.getsockname()[1])}"
    http_task = asyncio.create_task(http.serve(sockets=[listener]))
    log.info(
        "listening",
        http=http_url,
        grpc=address_of(config.host, grpc_server.port),
        device=device,
        instances=repository.instances,
        threads_per_instance=repository.threads,
    )
    loading = asyncio.create_task(repository.load_all())
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
            problem = repository.not_ready_because()
            log.info("loaded", ready=problem is None, why=problem)
            print(welcome(http_url, address_of(config.host, grpc_server.port), predictor), flush=True)
        settle(device, stop)
    canary = Canary(repository, metrics, config.canary_interval_s)
    replaying = asyncio.create_task(canary.run()) if config.canary_interval_s else None
    await stopping

    if replaying is not None:
        replaying.cancel()
    log.info("draining")
    drain_until_s = time.monotonic() + config.drain_timeout_s
    drained = asyncio.create_task(predictor.drain())
    http.stop()
    closing = asyncio.create_task(close_grpc(grpc_server, config.drain_timeout_s))
    await asyncio.wait([closing, http_task, drained], timeout=config.drain_timeout_s)
    if not drained.done():
        log.error("stopping with requests unanswered", drain_timeout_s=config.drain_timeout_s)
        exit_status = 1
    repository.close()
    await flush_traces(tracing, drain_until_s)
    log.info("stopped")
    if not loading.done():
        # A thread that reads or proves a model cannot be interrupted, and the interpreter would wait for its end.
        os._exit(exit_status)
    return exit_status


def request_memory_budget(config: ServiceConfig, metrics: Metrics) -> ByteBudget:
    """One bound on the bodies and messages that both faces hold together."""
    budget = ByteBudget("request memory", config.max_request_memory_bytes)
    metrics.show_budget(budget)
    return budget


def settle(device: Device, stop: asyncio.Event) -> None:
    """What is done once with all that has been loaded; the long part of it beside the first requests."""

    def move() -> None:
        log.info("memory is in huge pages", mib=move_to_huge_pages(stop.is_set) >> 20)

    keep_out_of_collections()
    if device == "cpu":  # a GPU's driver has pages of its own in this process's memory, and the weights lie elsewhere
        threading.Thread(target=move, name="huge-pages", daemon=True).start()


async def flush_traces(tracing: "Tracing | None", until_s: float) -> None:
    """Export the last traces, within what the drain has left of its time."""
    if tracing is not None:
        left_s = max(0.0, until_s - time.monotonic())
        await asyncio.to_thread(tracing.close, min(FLUSH_TRACES_S, left_s))


def open_tracing() -> "Tracing":
    """What `--tracing on` asks for.

    Raises:
        ImportError: its extra is not installed.
        ValueError, RuntimeError: an OTEL_* variable is wrong.
    """
    try:
        from service.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ImportError(f"--tracing on needs the extra: pip install 'heed[tracing]' ({error})") from None
    return Tracing(server_version())


async def close_grpc(grpc_server: GrpcServer, drain_timeout_s: float) -> None:
    """Take no new connections or calls, and return when the last call has ended.

    gRPC cancels the calls that it has received but not handed on, which no client takes for a refusal that it may
    retry. So for a moment they are still handed on, and refused in words.
    """
    await asyncio.sleep(REFUSING_S)
    await grpc_server.stop(drain_timeout_s)


def welcome(http: str, grpc_address: str, predictor: Predictor) -> str:
    """What a person who has started the server wants to know."""
    lines = [f"HTTP  {http}  (in a browser; API: {http}/docs)", f"gRPC  {grpc_address}"]
    if predictor.text_classifiers():
        body = '{"inputs": "A wonderful film."}'
        lines += [
            "Try:",
            f"  curl {http}/models/{predictor.text_classifiers()[0]} -d '{body}'",
        ]
    elif predictor.image_classifiers():
        lines += ["Try:", f"  curl {http}/models/{predictor.image_classifiers()[0]} --data-binary @cat.jpg"]
    return "\n".join(lines)
