"""Several calls at once from gRPC's core, which `grpc.aio` asks for one call at a time.

    core ──> poller thread ──> event loop: a task for the call, and the core is asked for the next one

However many calls wait there, each costs the threads two turns on the core then, and meets cold caches after them. With
more requests for a call outstanding the poller hands on at once what has come (docs/decisions/transport.md: figures).

gRPC has no public way to ask so. Its own steps are called here, by their names in `grpcio` 1.81; where a version has
others, calls are taken one at a time as `grpc.aio` does it.
"""

import asyncio
import inspect
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the types know its public half

# Besides the one that `grpc.aio` has outstanding itself. As many calls may begin in one turn of the event loop, about
# 0.2 ms each, before it hands an engine its next batch.
CALLS_AT_ONCE = 16
# At the end of a server: more than clients are likely to have waiting.
CALLS_AT_THE_END = 1024
# The parameters of gRPC's own steps: what becomes of a call, and the task that looks after it.
_STEPS = {
    "_handle_rpc": ["generic_handlers", "interceptors", "rpc_state", "loop", "concurrency_exceeded"],
    "_schedule_rpc_coro": ["rpc_coro", "rpc_state", "loop"],
}


class Handlers:
    """What generated code takes for the server that it adds its calls to; they are kept in `all`."""

    def __init__(self) -> None:
        self.all: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Take the calls of a service."""
        self.all.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Ignore the calls of a service, which `add_generic_rpc_handlers` has taken already."""


def keep_calls_outstanding(
    server: grpc.aio.Server, handlers: list[grpc.GenericRpcHandler], count: int = CALLS_AT_ONCE
) -> bool:
    """Have so many calls more handed on at once, until the server stops; whether this version of gRPC can do it.

    Args:
        server: has been started.
        handlers: what it was given to answer calls with.
        count: of calls.
    """
    core: Any = getattr(server, "_server", None)
    if not hasattr(core, "_request_call") or not all(map(_is_known, _STEPS)):
        return False
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
            except cygrpc._RequestCallError:  # the server stops
                return
            begin(cygrpc._schedule_rpc_coro(cygrpc._handle_rpc(handlers, (), state, loop, False), state, loop))

    for _ in range(count):
        begin(take())
    return True


async def take_all_calls(server: grpc.aio.Server, handlers: list[grpc.GenericRpcHandler]) -> None:
    """Take the calls that wait in gRPC's core, before the server is stopped: the core would end them as CANCELLED.

    Calls of which it hears in the very moment of the stop it ends so all the same.

    Args:
        server: runs, and is stopped next, without anything between.
        handlers: what it was given to answer calls with.
    """
    if keep_calls_outstanding(server, handlers, CALLS_AT_THE_END):
        await asyncio.sleep(0)  # they are asked for now


def _is_known(step: str) -> bool:
    """Whether the installed gRPC has a step as it is called here."""
    function = getattr(cygrpc, step, None)
    return function is not None and list(inspect.signature(function).parameters) == _STEPS[step]
