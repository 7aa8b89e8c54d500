"""The server: builds everything, wires it together, serves until SIGTERM.

config ──> metrics ──> repository (models, batchers, engines) ──> predictor ──> HTTP and gRPC
"""

import asyncio
import os
import signal

import structlog

from model_store.folder import FolderError
from service.config import ServiceConfig, address_of, available_cores
from service.metrics import Metrics
from service.predictor import Predictor
from service.repository import ModelRepository
from service.transport.grpc_server import start_grpc
from service.transport.http_server import build_http

log = structlog.get_logger("service")


async def serve(config: ServiceConfig) -> int:
    """Listen, load the models, answer; after SIGTERM or SIGINT finish what was admitted."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    repository = ModelRepository(config, metrics, num_cores=available_cores())
    predictor = Predictor(repository, metrics, config)
    try:
        http, listener = build_http(predictor, metrics, config)
        grpc_server, grpc_port = await start_grpc(predictor, config)
    except (OSError, RuntimeError) as error:
        log.error("cannot listen", why=str(error))
        return 1
    http_port = listener.getsockname()[1]
    http_task = asyncio.create_task(http.serve(sockets=[listener]))
    log.info(
        "listening",
        http=f"http://{address_of(config.host, http_port)}",
        grpc=address_of(config.host, grpc_port),
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
            http_url = f"http://{address_of(config.host, http_port)}"
            print(welcome(http_url, address_of(config.host, grpc_port), predictor), flush=True)
    await stopping

    log.info("draining")
    drained = asyncio.create_task(predictor.drain())
    http.should_exit = True
    closing = asyncio.create_task(grpc_server.stop(config.drain_timeout_s))
    await asyncio.wait([closing, http_task, drained], timeout=config.drain_timeout_s)
    if not drained.done():
        log.error("stopping with requests unanswered", drain_timeout_s=config.drain_timeout_s)
        exit_status = 1
    repository.close()
    log.info("stopped")
    if not loading.done():
        # A thread that reads or proves a model cannot be interrupted, and the interpreter would wait for its end.
        os._exit(exit_status)
    return exit_status


def welcome(http: str, grpc_address: str, predictor: Predictor) -> str:
    """What a person who has started the server wants to know."""
    lines = [f"HTTP  {http}  (API: {http}/docs)", f"gRPC  {grpc_address}"]
    if predictor.text_classifiers():
        body = '{"inputs": "A wonderful film."}'
        lines += [
            "Try:",
            f"  curl {http}/models/{predictor.text_classifiers()[0]} -d '{body}'",
        ]
    elif predictor.image_classifiers():
        lines += ["Try:", f"  curl {http}/models/{predictor.image_classifiers()[0]} --data-binary @cat.jpg"]
    return "\n".join(lines)
