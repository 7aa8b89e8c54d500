"""One request over each interface, sent as bytes that were made before; the result is a status."""

import contextlib
import http.client
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from load_tests.http2 import PREFACE, SETTINGS, frame
from load_tests.stalls.servers import Server

ANSWER_S = 120.0
NICENESS = 10  # niceness of the sending threads, so that the prober is woken first
NO_ANSWER = "no answer"
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
Send = Callable[[Server], str]


def over_http(path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Send:
    """Return a sender of a POST, or a GET without a body, on a connection of its own."""

    def send(server: Server) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=ANSWER_S)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server may have refused already
                connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
            response = connection.getresponse()
            response.read()
        except (http.client.HTTPException, OSError):
            return NO_ANSWER
        finally:
            connection.close()
        return str(response.status)

    return send


def over_grpc(message: bytes, method: str = MODEL_INFER, timeout_s: float = ANSWER_S, times: int = 1) -> Send:
    """Return a sender of a unary call on a channel of its own, `times` times in turn."""

    def send_one(call: Callable[..., bytes]) -> str:
        try:
            call(message, timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def send(server: Server) -> str:
        with grpc.insecure_channel(server.grpc, options=CHANNEL_OPTIONS) as channel:
            call: Callable[..., bytes] = channel.unary_unary(method)
            return counted([send_one(call) for _ in range(times)])

    return send


def at_once(send: Send, times: int) -> Send:
    """Return a sender of a request this many times, all at once."""

    def send_all(server: Server) -> str:
        with ThreadPoolExecutor(times, initializer=yield_to_prober) as pool:
            return counted(list(pool.map(lambda _: send(server), range(times))))

    return send_all


def in_turn(send: Send, times: int) -> Send:
    """Return a sender of a request this many times, one after the other."""
    return lambda server: counted([send(server) for _ in range(times)])


def http_connections(count: int) -> Send:
    """Open HTTP connections at once, each with a request."""
    return _connections(count, lambda server: server.http_port, b"GET /healthz HTTP/1.1\r\nhost: stalls\r\n\r\n")


def grpc_connections(count: int) -> Send:
    """Open gRPC connections at once; each waits for the server's settings."""
    return _connections(count, lambda server: server.grpc_port, PREFACE + frame(SETTINGS, 0, 0))


def _connections(count: int, port_of: Callable[[Server], int], sent: bytes) -> Send:
    def send(server: Server) -> str:
        begun_s = time.perf_counter()
        with contextlib.ExitStack() as stack:
            sockets = []
            for _ in range(count):
                connection = socket.create_connection(("127.0.0.1", port_of(server)), timeout=ANSWER_S)
                sockets.append(stack.enter_context(connection))
                connection.sendall(sent)
            answers = ["OK" if connection.recv(65536) else NO_ANSWER for connection in sockets]
            last_ms = 1e3 * (time.perf_counter() - begun_s)
        return f"{counted(answers)}, the last after {last_ms:.0f} ms"

    return send


def counted(answers: Sequence[str]) -> str:
    """Format statuses and how often each came."""
    counts = Counter(answers)
    return ", ".join(f"{answer} x {count}" if len(answers) > 1 else answer for answer, count in sorted(counts.items()))


def yield_to_prober() -> None:
    """Let every other thread of this machine go before the calling one."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
