"""A client of raw HTTP/2 frames, which can send half a message, reset streams, and stop reading."""

import socket
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
CANCEL = struct.pack(">I", 8)
FRAME_HEADER_BYTES, MAX_FRAME_BYTES, DEFAULT_WINDOW = 9, 16384, 65535
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 60.0  # a working server answers much earlier


@dataclass
class Frame:
    """One frame of HTTP/2."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call_headers(method: str, *extra: tuple[str, str]) -> bytes:
    """Encode the header block of a gRPC call, without compression."""
    pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *extra,
    ]
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in pairs
    )


def prefix(num_bytes: int) -> bytes:
    """Return the prefix of a gRPC message of this many bytes."""
    return b"\0" + struct.pack(">I", num_bytes)


@dataclass
class Http2Client:
    """One connection, which keeps to the windows that the server opens."""

    address: str
    timeout_s: float = TIMEOUT_S  # of a single read or write
    settings: dict[int, int] = field(default_factory=dict)
    server_settings: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    window: int = DEFAULT_WINDOW
    windows: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    next_stream: int = 1

    def __post_init__(self) -> None:
        """Connect, and wait for the server's settings."""
        host, port = self.address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=self.timeout_s)
        payload = b"".join(struct.pack(">HI", *setting) for setting in self.settings.items())
        try:
            self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, payload))
            while not self.server_settings:
                self.read()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self, method: str = MODEL_INFER, *extra: tuple[str, str]) -> int:
        """Send the headers of a call; return its stream."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, call_headers(method, *extra)))
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send data as far as the windows open; returns when all is sent or the server has ended the stream."""
        while data and stream not in self.ended:
            free = min(self.window, self._initial_window() + self.windows[stream], MAX_FRAME_BYTES, len(data))
            if free <= 0:
                self.read()
                continue
            last = end and free == len(data)
            self.socket.sendall(frame(DATA, END_STREAM if last else 0, stream, data[:free]))
            self.window -= free
            self.windows[stream] -= free
            data = data[free:]

    def read(self) -> Frame:
        """Read the next frame, and apply it to windows and settings.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        head = self._exactly(FRAME_HEADER_BYTES)
        kind, flags = head[3], head[4]
        stream = struct.unpack(">I", head[5:])[0]
        got = Frame(kind, flags, stream, self._exactly(int.from_bytes(head[:3], "big")))
        if kind == SETTINGS and not flags & ACK:
            pairs = [struct.unpack_from(">HI", got.payload, at) for at in range(0, len(got.payload), 6)]
            self.server_settings |= dict(pairs)
            self.socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == WINDOW_UPDATE:
            more = struct.unpack(">I", got.payload)[0]
            if stream:
                self.windows[stream] += more
            else:
                self.window += more
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, got.payload))
        elif kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.ended.add(stream)
        return got

    def read_until_ended(self, stream: int) -> list[Frame]:
        """Read all frames of a stream up to its end."""
        frames = []
        while stream not in self.ended:
            if (got := self.read()).stream == stream:
                frames.append(got)
        return frames

    def _initial_window(self) -> int:
        return self.server_settings.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)

    def _exactly(self, num_bytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < num_bytes:
            part = self.socket.recv(num_bytes - len(parts))
            if not part:
                raise ConnectionError("the server has closed the connection")
            parts += part
        return bytes(parts)
