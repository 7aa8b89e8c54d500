"""Keeps several requests for a call outstanding in gRPC's core; `grpc.aio` itself requests one call at a time.

    core ──> poller thread ──> event loop: starts a task for the call, and requests the next call from the core

With one request outstanding, the core wakes the poller thread and the event loop once for each call, however many wait.
With several outstanding, waiting calls are delivered together. At 64 users a request without a model then takes 0.238
instead of 0.440 ms of CPU time (docs/decisions/transport.md).

gRPC has no public interface for this. The module calls private functions of grpcio, and only of versions that it was
tested with. With any other version, calls are accepted one at a time, as `grpc.aio` does.
"""

import asyncio
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the type stubs have only its public part

# To add a version, run tests/service/transport/grpc/ with it; pyproject.toml has the upper bound. From 1.84 on, the
# private functions have other parameters.
TESTED_GRPCIO = frozenset({"1.81.1", "1.81.2", "1.82.3", "1.83.2"})
# Requests in addition to the one of `grpc.aio`. That many calls may start in one iteration of the event loop, at about
# 0.2 ms each, before an engine gets its next batch.
CALLS_AT_ONCE = 16
# Requests at the end of a server: more than the calls that clients are likely to have waiting.
CALLS_AT_THE_END = 1024


class Handlers:
    """Collects the call handlers that generated code adds to a server."""

    def __init__(self) -> None:
        self.all: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Collect the call handlers of a service."""
        self.all.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Ignore the call handlers of a service, because `add_generic_rpc_handlers` has collected them already."""


def keep_calls_outstanding(
    server: grpc.aio.Server,
    handlers: list[grpc.GenericRpcHandler],
    count: int = CALLS_AT_ONCE,
    version: str = grpc.__version__,
) -> bool:
    """Keep `count` more requests for a call outstanding until the server stops.

    Args:
        server: a started server.
        handlers: the server's call handlers.
        count: number of requests.
        version: version of grpcio.

    Returns:
        False if nothing was done, because the version is not in `TESTED_GRPCIO`.
    """
    if version not in TESTED_GRPCIO:
        return False
    core: Any = server._server  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def begin(work: Any) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def take() -> None:
        while core.is_running():
            try:
                state = await core._request_call()
            except cygrpc._RequestCallError:  # the server is stopping
                return
            begin(cygrpc._schedule_rpc_coro(cygrpc._handle_rpc(handlers, (), state, loop, False), state, loop))

    for _ in range(count):
        begin(take())
    return True


async def take_all_calls(server: grpc.aio.Server, handlers: list[grpc.GenericRpcHandler]) -> None:
    """Accept the calls that wait in gRPC's core; call this right before the server is stopped.

    Otherwise the core ends them as CANCELLED. It still does so with calls that arrive at the moment of the stop.

    Args:
        server: a running server.
        handlers: the server's call handlers.
    """
    if keep_calls_outstanding(server, handlers, CALLS_AT_THE_END):
        await asyncio.sleep(0)  # lets the requests reach the core
