"""Calls that the core hands on at once: with the installed gRPC, against a real server."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import grpc

from service.transport.grpc_calls import CALLS_AT_ONCE, Handlers, take_calls_at_once

NUM_CALLS = 3 * CALLS_AT_ONCE


def handlers_of(behaviour: Any) -> Handlers:
    """One call, `/test.Test/Call`, of plain bytes."""
    handlers = Handlers()
    method = grpc.unary_unary_rpc_method_handler(behaviour)
    handlers.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Call": method}),))
    return handlers


@contextmanager
def client(port: int) -> Iterator[Any]:
    """Makes the call from a thread of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test.Test/Call")


async def test_every_call_is_answered_and_stopping_ends_it() -> None:
    """More calls at a time than are asked for at once; then no task is left behind."""
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
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(tuple(handlers.all))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert take_calls_at_once(server, handlers.all), "the pinned gRPC knows how"
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


async def test_a_version_without_these_steps_takes_calls_one_at_a_time() -> None:
    """It says so, and nothing is begun."""
    before = asyncio.all_tasks()
    unknown: Any = SimpleNamespace()
    assert not take_calls_at_once(unknown, [])
    assert asyncio.all_tasks() == before
