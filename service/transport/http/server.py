"""The HTTP server: accepts connections within a limit, sleeps while idle, and stops after the responses in progress."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service.process.memory_budget import ByteBudget, Reservation
from service.transport.http.connection import MEMORY, WRITTEN, ConnectionLimits, HttpConnection, Settings, refusal

log = structlog.get_logger(__name__)

MAX_ACCEPTED_AT_ONCE = 256  # connections per iteration of the event loop; that many take about 10 ms
ACCEPT_PAUSE_S = 0.1  # pause in accepting when the process has no file descriptors left
DESCRIPTOR_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class HttpServer(uvicorn.Server):
    """A uvicorn server that leaves signals to `service.server` and does not wake up while it is idle.

    Args:
        application: the ASGI application that it serves, made by `with_memory`.
        limits: limits of its connections.
    """

    def __init__(self, application: ASGIApp, limits: ConnectionLimits) -> None:
        super().__init__(Settings(application, limits))
        self._limits = limits
        self._stopping = asyncio.Event()
        self._opening: dict[HttpConnection, asyncio.Task[Any]] = {}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting connections, all waiting ones in one iteration of the event loop.

        uvloop itself accepts one per iteration, and an iteration takes milliseconds on a busy server: the last of many
        clients that connect at once would wait for as many iterations.
        """
        await super().startup(sockets=[])
        for listener in sockets or []:
            listener.setblocking(False)
            self._listen(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, and wait for the responses in progress."""
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
        await super().shutdown(sockets=sockets)

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() != -1 and not self.should_exit:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept all waiting connections."""
        loop = asyncio.get_running_loop()
        free_places = self._limits.max_connections - self._num_connections()
        for _ in range(MAX_ACCEPTED_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in DESCRIPTOR_ERRORS:
                    raise
                log.warning("cannot accept connections", why=str(error))
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_PAUSE_S, self._listen, listener)
                return
            connection.setblocking(False)
            if free_places <= 0:
                with contextlib.suppress(OSError):
                    connection.send(refusal(503, f"there are {self._limits.max_connections} connections, the limit"))
                connection.close()
                continue
            free_places -= 1
            protocol = HttpConnection(config=self.config, server_state=self.server_state, app_state={})
            self._opening[protocol] = loop.create_task(self._open(connection, protocol))

    def _num_connections(self) -> int:
        connections = self.server_state.connections
        return len(connections) + sum(protocol not in connections for protocol in self._opening)

    async def _open(self, connection: socket.socket, protocol: "HttpConnection") -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # the client has hung up already
            connection.close()
        finally:
            del self._opening[protocol]

    async def main_loop(self) -> None:
        """Wait for `stop`.

        uvicorn's own loop polls every 0.1 s for its end and for settings that are not used here (a Date header, a limit
        of requests). The polling was four fifths of an idle server's CPU time: waking up after a long sleep costs up to
        1.5 ms on a virtual machine.
        """
        await self._stopping.wait()

    def stop(self) -> None:
        """Stop accepting connections; `serve` returns when the last response is written."""
        self.should_exit = True
        self._stopping.set()


def with_memory(application: ASGIApp, budget: ByteBudget) -> ASGIApp:
    """Wrap an ASGI application: each request holds its reserved memory until its response has been written."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        memory = scope[MEMORY] = Reservation(budget)
        try:
            await application(scope, receive, send)
            if memory.num_bytes and (written := scope.get(WRITTEN)) is not None:  # another ASGI server has no such key
                await written()
        finally:
            memory.release()

    return answer
