"""An HTTP server with an ASGI application of a test's own, and clients that send bytes."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from service.process.memory_budget import ByteBudget
from service.transport.http.connection import KEEP_ALIVE_S, ConnectionLimits
from service.transport.http.server import HttpServer, with_memory
from service.transport.turns import Turns

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


async def answer_ok(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and respond with its length (an ASGI application)."""
    size, more = 0, True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)
        size += len(message.get("body", b""))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-size", str(size).encode())]})
    await send({"type": "http.response.body", "body": b"ok"})


class Running:
    """An HTTP server that runs in this event loop."""

    def __init__(self, server: HttpServer, port: int, budget: ByteBudget) -> None:
        self.server, self.port, self.budget = server, port, budget
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def exchange(self, sent: bytes) -> bytes:
        """Send bytes over a new connection, and return what the server sends until it closes the connection."""

        def in_thread() -> bytes:
            received = b""
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection,
                contextlib.suppress(ConnectionError),
            ):
                sending = threading.Thread(target=send_all, args=(connection, sent))
                sending.start()
                try:
                    while part := connection.recv(65536):
                        received += part
                finally:
                    sending.join()
            return received

        return await asyncio.to_thread(in_thread)


def send_all(connection: socket.socket, sent: bytes) -> None:
    """Send bytes, and stop quietly when the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(sent)


@contextlib.asynccontextmanager
async def serving(
    application: ASGIApp,
    *,
    max_connections: int = 1000,
    client_timeout_s: float = 30.0,
    memory_bytes: int = 10**8,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncIterator[Running]:
    """Run a server with this application and these limits."""
    budget = ByteBudget("request memory", memory_bytes)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    limits = ConnectionLimits(max_connections, client_timeout_s, budget, Turns(), keep_alive_s)
    server = HttpServer(with_memory(application, budget), limits)
    serving_task = asyncio.create_task(server.serve([listener]))
    await turns_until(lambda: server.started)
    try:
        yield (running := Running(server, listener.getsockname()[1], budget))
    finally:
        for writer in running.writers:
            writer.transport.abort()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        server.stop()
        await serving_task


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in the event loop that the server uses."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    uvloop.run(bounded())


async def turns_until(condition: Callable[[], bool]) -> int:
    """Let the event loop run until a condition holds, and return the number of iterations."""
    turns = 0
    while not condition():
        turns += 1
        await asyncio.sleep(0)
    return turns
