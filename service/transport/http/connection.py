"""HTTP connections: limits on headers, trailers, pipelined requests, memory and the client's time.

uvicorn itself limits neither the headers and trailers of a request, nor the number of pipelined requests, nor the time
that a client takes to send a request or to receive its response.
"""

import asyncio
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import Overloaded
from service.process.memory_budget import ByteBudget, Reservation
from service.transport.turns import Turns

MAX_HEADER_BYTES = 64 * 1024  # per request, including the request line; trailers have the same limit
MAX_HEADERS = 128  # per request; each header takes more memory than its bytes
# Received bytes are parsed in pieces, so that limits are checked within one read: uvloop reads up to 250 KiB.
PIECE_BYTES = 8 * 1024
MAX_PIPELINED = 64  # requests waiting for an earlier response; browsers and HTTP libraries do not pipeline
# Idle time after a response until the server closes the connection. A client that sends its next request at that moment
# gets an error, so clients' pools must close theirs first: aiohttp does after 15 s, load balancers after 60 s.
KEEP_ALIVE_S = 75.0
BODY_STEP_BYTES = 64 * 1024  # part of a body or response that must be transferred within the client's time-out
MEMORY = "heed.memory"  # key in a request's scope: its `Reservation`, released once the response is written
WRITTEN = "heed.written"  # key in a request's scope: coroutine function that waits until the write buffer is low


class ConnectionLimits(NamedTuple):
    """Limits of the connections of an HTTP server.

    Attributes:
        max_connections: open connections; further ones are refused.
        client_timeout_s: time for a client to send its headers, or to transfer each step of a body or a response.
        request_memory: memory budget for requests and responses.
        turns: queue for parsing long requests, so that they do not delay others.
        keep_alive_s: idle time after a response until the connection is closed.
    """

    max_connections: int
    client_timeout_s: float
    request_memory: ByteBudget
    turns: Turns
    keep_alive_s: float = KEEP_ALIVE_S


class Settings(uvicorn.Config):
    """uvicorn's configuration, extended by the limits of connections."""

    def __init__(self, application: ASGIApp, limits: ConnectionLimits) -> None:
        super().__init__(
            application,
            http=HttpConnection,
            access_log=False,
            log_config=None,
            lifespan="off",
            server_header=False,
            date_header=False,
            ws="none",
            timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # the event loop takes fractions, too
        )
        self.limits = limits


class HttpConnection(HttpToolsProtocol):
    """One connection, with limits on headers, trailers, pipelined requests, memory and the client's time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.config, Settings)
        self._limits = self.config.limits
        self._in_head = False  # between a request's first byte and the end of its headers
        # Bytes since the request began, its headers ended or a piece of its body arrived: they belong to headers,
        # trailers or the framing of a chunk.
        self._stretch_bytes = 0
        self._refusal: tuple[int, str] | None = None
        self._unparsed = bytearray()  # received, but long or behind a request that has no response yet
        self._has_turn = False  # whether `_take_turn` is queued among the long steps
        self._memory = Reservation(self._limits.request_memory)  # for unparsed bytes and long headers
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # --- start and end of a connection -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time-out for the first request's headers."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the connection's timers and release its memory."""
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._memory.release()
        self._unparsed = bytearray()
        super().connection_lost(exc)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse short data at once; queue long data for a turn of its own."""
        if self.transport.is_closing():
            return
        if len(data) <= PIECE_BYTES and not self.pipeline and not self._unparsed:
            self._parse(data)
            return
        self._unparsed += data
        # Stop reading until the turn: uvloop reads up to 32 times before it serves the next connection.
        self.flow.pause_reading()
        if not self._has_turn:
            self._has_turn = True
            self._limits.turns.call(self._take_turn)

    def _take_turn(self) -> None:
        self._has_turn = False
        if self.transport.is_closing():
            return
        self._parse_unparsed()
        body_waits = self._is_busy() and len(self.cycle.body) > HIGH_WATER_LIMIT
        if not self._unparsed and not self.pipeline and not body_waits and not self.transport.is_closing():
            self.flow.resume_reading()

    def _parse_unparsed(self) -> None:
        """Parse piece by piece, up to a request that must wait for the response to an earlier one."""
        while self._unparsed and not self.pipeline and not self.transport.is_closing():
            piece = bytes(self._unparsed[:PIECE_BYTES])
            del self._unparsed[:PIECE_BYTES]
            self._parse(piece)
        if self._unparsed:
            self.flow.pause_reading()
            try:
                self._memory.grow_to(len(self._unparsed))
            except Overloaded:
                self.transport.abort()
        self._release_when_idle()

    def _release_when_idle(self) -> None:
        if not self._unparsed and not self._is_busy() and not self._in_head:
            self._memory.release()

    def _is_busy(self) -> bool:
        """Return whether a request has no complete response yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _parse(self, data: bytes) -> None:
        self._stretch_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._refusal is None and self._stretch_bytes > MAX_HEADER_BYTES + PIECE_BYTES:
            self._refusal = (431, f"the request's headers have more than {MAX_HEADER_BYTES} bytes")
        if self._refusal is None and self._in_head and self._stretch_bytes > PIECE_BYTES:
            self._reserve_head()
        if self._refusal is not None:
            self._refuse(*self._refusal)
        elif self._head_timer is None and (self._in_head or not self._is_busy()):
            self._expect_head()

    def _reserve_head(self) -> None:
        try:
            self._memory.grow_to(MAX_HEADER_BYTES)
        except Overloaded as error:
            self._refusal = (429, str(error))

    def on_message_begin(self) -> None:
        """Start counting a new request's header bytes."""
        self._in_head, self._stretch_bytes = True, 0
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Add a part of the request's URL."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, and refuse the request beyond a limit; trailers, which follow the body, are ignored."""
        if not self._in_head or self._refusal is not None:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refusal = (431, f"the request's headers have more than {MAX_HEADER_BYTES} bytes")
        elif len(self.headers) >= MAX_HEADERS:
            self._refusal = (431, f"the request has more than {MAX_HEADERS} headers")
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the application's call; the body follows."""
        if self._refusal is None and len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = (503, f"more than {MAX_PIPELINED} pipelined requests wait for an earlier answer")
        if self._refusal is not None:
            return
        self._in_head, self._stretch_bytes = False, 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self.scope[WRITTEN] = self.flow.drain  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body."""
        self._stretch_bytes = 0
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Mark the request as complete."""
        if self._refusal is None:
            super().on_message_complete()

    # --- sending -----------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Continue with the next request; the unread rest of a body has a time-out, too."""
        body_is_there = self.cycle is None or not self.cycle.more_body
        super().on_response_complete()
        if self._unparsed:
            self._parse_unparsed()
        self._release_when_idle()
        if not body_is_there and self._head_timer is None and not self.transport.is_closing():
            self._expect_head()

    def pause_writing(self) -> None:
        """Start the client's time-out for each step of the response, because the write buffer is full."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Stop the time-out, because the client has received most of the write buffer."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_writing(self) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self._limits.client_timeout_s, self._check_writing, unsent_bytes)

    def _check_writing(self, unsent_before_bytes: int) -> None:
        if unsent_before_bytes - self.transport.get_write_buffer_size() < BODY_STEP_BYTES:
            self.transport.abort()
        else:
            self._watch_writing()

    # --- refusals ----------------------------------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.client_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self._refuse(408, f"the headers did not end within {self._limits.client_timeout_s} s (client_timeout_s)")
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Send uvicorn's error for malformed HTTP, in this server's error format."""
        self._refuse(400, msg)

    def _refuse(self, status: int, text: str) -> None:
        # The client would take an error sent now for the response to an earlier request that is still in progress.
        its_own = not self._in_head and not self.pipeline and self.cycle is not None and not self.cycle.response_started
        if its_own or not self._is_busy():
            self.transport.write(refusal(status, text))
        self.transport.close()


def refusal(status: int, text: str) -> bytes:
    """Encode an error response that ends the connection.

    Args:
        status: the HTTP status.
        text: the error's text, sent as JSON.
    """
    body = msgspec.json.encode({"error": text})
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body
