"""Connections of the HTTP face: how they are accepted, what may come over one, and when one ends."""

import asyncio
import contextlib
from collections.abc import Iterator
from http import HTTPStatus

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEADER_BYTES = 64 * 1024  # of one request, its first line included


class HttpConnection(HttpToolsProtocol):
    """One connection; uvicorn's own sets no bound to what comes before a body."""

    _header_bytes: int | None = None  # of the request that is being read; None within its body, and between requests

    def on_message_begin(self) -> None:
        """A request begins."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its body begins."""
        self._header_bytes = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Refuse headers that do not end, before they fill the memory."""
        super().data_received(data)
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADER_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the request's headers have more than {MOST_HEADER_BYTES} bytes")

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says to what is no HTTP, in the form of all errors here."""
        self._refuse(400, msg)

    def _refuse(self, status: int, text: str) -> None:
        body = msgspec.json.encode({"error": text})
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


class HttpServer(uvicorn.Server):
    """uvicorn, with the process's signals left to `service.server`, and nothing to do while nobody asks."""

    def __init__(self, settings: uvicorn.Config) -> None:
        super().__init__(settings)
        self._stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def main_loop(self) -> None:
        """Wait for `stop`.

        uvicorn's own looks every 0.1 s whether it is to end, and at settings that are not used here (a Date header, a
        limit of requests). That was four fifths of what an idle server costs: a wake after a long sleep is dear, up to
        1.5 ms on a virtual machine.
        """
        await self._stopping.wait()

    def stop(self) -> None:
        """Accept no more connections; `serve` returns when the last answer is out."""
        self.should_exit = True
        self._stopping.set()
