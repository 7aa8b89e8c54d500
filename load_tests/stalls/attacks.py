"""Attacks on the server's memory, all at once, bounded in number and in time."""

import contextlib
import functools
import itertools
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from load_tests.http2 import (
    CANCEL,
    END_HEADERS,
    HEADERS,
    MODEL_INFER,
    RST_STREAM,
    Http2Client,
    call_headers,
    frame,
    prefix,
)
from load_tests.stalls.bodies import IMAGES, SENTIMENT, webp
from load_tests.stalls.cases import LARGEST_SIDE, MAX_BODY_BYTES
from load_tests.stalls.sending import over_grpc, over_http, yield_to_prober
from load_tests.stalls.servers import Server
from proto import heed_pb2

HOLDERS = 60  # connections over each interface that each hold a body or message
DECODERS = 4  # clients over each interface that send the largest WebP files
FLOODERS, STREAMS_A_WRITE = 4, 200
TRAILER_CLIENTS, MAX_TRAILER_BYTES = 4, 100_000_000
HALF_CALLS_CONNECTIONS, HALF_CALLS_STREAMS, HALF_CALL_BYTES = 20, 100, 60_000
HALF_HEADS, HALF_HEAD_BYTES = 256, 60_000
PIECE_BYTES = 64 * 1024
PAUSE_S = 0.2  # before a client retries
POLL_S = 0.1

Attack = Callable[["Attackers"], None]


class Attackers:
    """Threads that attack a server for a time, and keep what they have opened until its end."""

    def __init__(self, server: Server, seconds: float, names: Sequence[str]) -> None:
        self.server, self._seconds, self._names = server, seconds, names
        self.sent: Counter[str] = Counter()
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        """Attack until the time is over; every connection is closed then."""
        threads = [
            threading.Thread(target=self._repeat, args=(attack,), daemon=True)
            for name in self._names
            for attack, count in ATTACKS[name]
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        self._over.wait(self._seconds)
        self._over.set()
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(self._seconds)

    @property
    def going(self) -> bool:
        """Whether the attacks go on."""
        return not self._over.is_set()

    def hold(self) -> None:
        """Wait for the end with all connections open."""
        self._over.wait()

    def count(self, what: str, number: int = 1) -> None:
        """Count what was sent."""
        with self._lock:
            self.sent[what] += number

    def keep(self, opened: socket.socket) -> None:
        """Close a connection when the attacks are over, or at once if they are."""
        with self._lock:
            self._sockets.append(opened)
            if not self.going:
                opened.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def http(self) -> Iterator[socket.socket]:
        """Connect to the HTTP interface."""
        address = ("127.0.0.1", self.server.http_port)
        with socket.create_connection(address, timeout=self._seconds) as connection:
            self.keep(connection)
            yield connection

    @contextlib.contextmanager
    def http2(self) -> Iterator[Http2Client]:
        """Connect to the gRPC interface."""
        with Http2Client(self.server.grpc, timeout_s=self._seconds) as client:
            self.keep(client.socket)
            yield client

    def _repeat(self, attack: Attack) -> None:
        yield_to_prober()
        while self.going:
            with contextlib.suppress(OSError):  # the server closed or refused it
                attack(self)
            self._over.wait(PAUSE_S)


def hold_body(attackers: Attackers) -> None:
    """Send a body of 16 MB over HTTP, except its last byte."""
    with attackers.http() as connection:
        head = f"POST {SENTIMENT} HTTP/1.1\r\nhost: stalls\r\ncontent-length: {MAX_BODY_BYTES}\r\n\r\n"
        connection.sendall(head.encode())
        attackers.count("bodies of 16 MB")
        left, piece = MAX_BODY_BYTES - 1, bytes(PIECE_BYTES)
        while left and attackers.going:
            connection.sendall(piece[:left])
            left -= min(left, len(piece))
        attackers.hold()


def hold_message(attackers: Attackers) -> None:
    """Send a message of 16 MB over gRPC, except its last byte."""
    with attackers.http2() as client:
        size, stream = MAX_BODY_BYTES - 100, client.begin()
        attackers.count("messages of 16 MB")
        client.send(stream, prefix(size))
        left, piece = size - 1, bytes(PIECE_BYTES)
        while left and attackers.going and stream not in client.ended:
            client.send(stream, piece[:left])
            left -= min(left, len(piece))
        if stream not in client.ended:
            attackers.hold()


@functools.cache
def bomb() -> bytes:
    """Return an image file of a few kB that decodes to 49 megapixels."""
    return webp(LARGEST_SIDE)


def decode_over_http(attackers: Attackers) -> None:
    """Send a WebP file of a few kB and 49 megapixels over HTTP."""
    attackers.count("WebP files of 49 megapixels")
    over_http(IMAGES, bomb())(attackers.server)


def decode_over_grpc(attackers: Attackers) -> None:
    """Send a WebP file of a few kB and 49 megapixels over gRPC."""
    attackers.count("WebP files of 49 megapixels")
    request = heed_pb2.ClassifyImageRequest(model="cifar10-vit", image=bomb())
    over_grpc(request.SerializeToString(), "/heed.v1.Heed/ClassifyImage")(attackers.server)


def flood(attackers: Attackers) -> None:
    """Begin calls and reset them at once, without end."""
    with attackers.http2() as client:
        streams, headers = itertools.count(1, 2), call_headers(MODEL_INFER)
        while attackers.going:
            numbers = [next(streams) for _ in range(STREAMS_A_WRITE)]
            client.socket.sendall(
                b"".join(
                    frame(HEADERS, END_HEADERS, number, headers) + frame(RST_STREAM, 0, number, CANCEL)
                    for number in numbers
                )
            )
            attackers.count("calls begun and reset", STREAMS_A_WRITE)
            take_what_is_there(client.socket)


def take_what_is_there(connection: socket.socket) -> None:
    """Read what the server has sent, so that it never waits for this client."""
    while select.select([connection], [], [], 0)[0] and connection.recv(PIECE_BYTES):
        pass


def send_trailers(attackers: Attackers) -> None:
    """Send a chunked body and 100 MB of trailers behind it."""
    with attackers.http() as connection:
        connection.sendall(f"POST {SENTIMENT} HTTP/1.1\r\nhost: stalls\r\n".encode())
        connection.sendall(b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
        attackers.count("requests with 100 MB of trailers")
        piece, sent = (b"x-trailer: " + b"t" * 100 + b"\r\n") * 500, 0
        while attackers.going and sent < MAX_TRAILER_BYTES:
            connection.sendall(piece)
            sent += len(piece)


def half_calls(attackers: Attackers) -> None:
    """Send many messages on one connection, each without its last byte."""
    with attackers.http2() as client:
        for _ in range(HALF_CALLS_STREAMS):
            client.send(client.begin(), prefix(HALF_CALL_BYTES) + bytes(HALF_CALL_BYTES - 1))
            attackers.count("half-sent messages of 60 kB")
            if not attackers.going:
                return
        attackers.hold()


def half_head(attackers: Attackers) -> None:
    """Send headers of 60 kB that do not end."""
    with attackers.http() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: stalls\r\nx-long: " + bytes(HALF_HEAD_BYTES).replace(b"\0", b"h"))
        attackers.count("half-sent headers of 60 kB")
        while attackers.going and connection.recv(1):
            pass


ATTACKS: dict[str, tuple[tuple[Attack, int], ...]] = {
    "bodies": ((hold_body, HOLDERS),),
    "messages": ((hold_message, HOLDERS),),
    "webp": ((decode_over_http, DECODERS), (decode_over_grpc, DECODERS)),
    "resets": ((flood, FLOODERS),),
    "trailers": ((send_trailers, TRAILER_CLIENTS),),
    "half-messages": ((half_calls, HALF_CALLS_CONNECTIONS),),
    "half-headers": ((half_head, HALF_HEADS),),
}


def measure_memory(server: Server, names: Sequence[str], seconds: float, rest_s: float) -> dict[str, Any]:
    """Return the resident memory of a server at rest, its maximum during the attacks, and some time afterwards."""
    process = server.process
    ask = over_http(SENTIMENT, b'{"inputs": "a film to see again"}')
    for send in (ask, over_http(IMAGES, webp(32))):
        send(server)
    process.wait_until_idle()
    idle_mib = process.memory_mib()["now"]
    Path(f"/proc/{process.popen.pid}/clear_refs").write_text("5")  # the peak counts from here (proc(5))
    bomb()
    attackers = Attackers(server, seconds, names)
    attackers.run()
    answer = ask_until(ask, server)
    peak_mib = process.memory_mib()["peak"]
    time.sleep(rest_s)
    return {
        "idle_mib": idle_mib,
        "peak_mib": max(peak_mib, process.memory_mib()["peak"]),
        "afterwards_mib": process.memory_mib()["now"],
        "seconds": seconds,
        "rest_s": rest_s,
        "sent": dict(attackers.sent),
        "answer": answer,
    }


def ask_until(ask: Callable[[Server], str], server: Server, within_s: float = 10.0) -> str:
    """Return the first answer that is no refusal for want of memory, or the last refusal when none comes in time."""
    ends_s = time.monotonic() + within_s
    while (answer := ask(server)) == "429" and time.monotonic() < ends_s:
        time.sleep(POLL_S)
    return answer
