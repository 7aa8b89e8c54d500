"""Calls are accepted in advance with the installed gRPC version, on a real server."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from load_tests.http2 import HEADERS, PING, Http2Client, frame, prefix
from service.config import ServiceConfig
from service.transport.grpc.accept import CALLS_AT_ONCE, Handlers, keep_calls_outstanding, take_all_calls
from service.transport.grpc.server import listen

NUM_CALLS = 3 * CALLS_AT_ONCE


def handlers_of(behaviour: Any) -> Handlers:
    """Make one call `/test.Test/Call` of plain bytes."""
    handlers = Handlers()
    method = grpc.unary_unary_rpc_method_handler(behaviour)
    handlers.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Call": method}),))
    return handlers


async def started(handlers: Handlers) -> tuple[grpc.aio.Server, int]:
    """Start a server; return it and its port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(tuple(handlers.all))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


@contextmanager
def client(port: int) -> Iterator[Any]:
    """Make the call from a thread of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test.Test/Call")


async def test_every_call_is_answered_and_stopping_ends_all_tasks() -> None:
    """There are more concurrent calls than are accepted in advance."""
    together, most = 0, 0
    all_there = asyncio.Event()

    async def behaviour(request: bytes, context: Any) -> bytes:
        nonlocal together, most
        together += 1
        most = max(most, together)
        if together == NUM_CALLS:
            all_there.set()
        await all_there.wait()
        return request

    handlers = handlers_of(behaviour)
    server, port = await started(handlers)
    assert keep_calls_outstanding(server, handlers.all), "the pinned gRPC knows how"
    with client(port) as call, ThreadPoolExecutor(1) as pool:

        def call_all() -> list[bytes]:
            futures = [call.future(b"%d" % number, timeout=30) for number in range(NUM_CALLS)]
            return [future.result() for future in futures]

        answers = await asyncio.get_running_loop().run_in_executor(pool, call_all)
    assert answers == [b"%d" % number for number in range(NUM_CALLS)]
    assert most == NUM_CALLS
    await server.stop(None)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        await asyncio.wait_for(asyncio.gather(*left), 10)


async def test_calls_that_wait_at_shutdown_are_answered() -> None:
    """gRPC's core would end them with CANCELLED."""

    async def behaviour(request: bytes, context: Any) -> bytes:
        return request

    handlers = handlers_of(behaviour)
    server, port = await started(handlers)
    keep_calls_outstanding(server, handlers.all)
    with await asyncio.to_thread(Http2Client, f"127.0.0.1:{port}") as raw:
        streams = [raw.begin("/test.Test/Call") for _ in range(NUM_CALLS)]
        for stream in streams:
            raw.send(stream, prefix(1) + b"x", end=True)
        # The event loop is blocked meanwhile: the core has received all calls, and none is accepted.
        raw.socket.sendall(frame(PING, 0, 0, b"are here"))
        while raw.read().kind != PING:
            pass
        await take_all_calls(server, handlers.all)
        stopping = asyncio.create_task(server.stop(30))
        ends = {}
        while len(raw.ended) < NUM_CALLS:
            got = await asyncio.to_thread(raw.read)
            if got.stream in raw.ended:
                ends[got.stream] = got.kind
    await stopping  # it also waits for the connection to close
    assert ends == dict.fromkeys(streams, HEADERS)  # none is RST_STREAM


@pytest.mark.parametrize(("version", "warned"), [(grpc.__version__, []), ("1.0.0", ["1.0.0"])])
async def test_a_version_that_was_not_tested_is_served_the_public_way(version: str, warned: list[str]) -> None:
    """It gives the same answers as the installed one, without private steps, and one warning names it."""

    async def behaviour(request: bytes, context: Any) -> bytes:
        return request * 2

    tasks = asyncio.all_tasks()
    handlers = handlers_of(behaviour)
    with capture_logs() as logs:
        server, port = await listen(handlers, ServiceConfig(grpc_port=0), version)
    takers = [task for task in asyncio.all_tasks() - tasks if task.get_coro().__qualname__.endswith("take")]
    assert len(takers) == (0 if warned else CALLS_AT_ONCE)
    with client(port) as call, ThreadPoolExecutor(1) as pool:

        def call_all() -> list[bytes]:
            futures = [call.future(b"%d " % number, timeout=30) for number in range(NUM_CALLS)]
            return [future.result() for future in futures]

        answers = await asyncio.get_running_loop().run_in_executor(pool, call_all)
    assert answers == [b"%d %d " % (number, number) for number in range(NUM_CALLS)]
    await server.stop(None)
    assert [entry["grpcio"] for entry in logs if entry["log_level"] == "warning"] == warned
