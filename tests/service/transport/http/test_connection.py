"""HTTP connections: limits on requests, time-outs, memory."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from starlette.types import Receive, Scope, Send

from service.transport.http.connection import (
    KEEP_ALIVE_S,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MEMORY,
)
from tests.conftest import Server, running_server, write_onnx
from tests.service.transport.http.bare_server import HEAD, answer_ok, run, serving, turns_until


def test_long_bodies_that_come_at_once_take_turns() -> None:
    """Each body is parsed in its own iteration of the loop, and other connections are served in between."""

    async def test() -> None:
        count, parsed_at = 0, list[int]()

        def next_turn() -> None:
            nonlocal count, handle
            count += 1
            handle = asyncio.get_running_loop().call_soon(next_turn)

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            parsed_at.append(count)
            await answer_ok(scope, receive, send)

        handle = asyncio.get_running_loop().call_soon(next_turn)
        async with serving(noting) as running:
            clients = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(16)]
            await turns_until(lambda: len(running.server.server_state.connections) == 16)
            for client in clients:
                client.sendall(HEAD + b"content-length: 20000\r\n\r\n" + bytes(20_000))
            await turns_until(lambda: len(parsed_at) == 16)
            for client in clients:
                client.close()
        handle.cancel()
        assert len(set(parsed_at)) == 16

    run(test)


def test_a_request_behind_a_large_body_is_not_refused() -> None:
    """Both arrive in one segment, and the body's bytes do not count as headers of the second request."""

    async def test() -> None:
        async with serving(answer_ok) as running:
            body = b"x" * 150_000
            first = HEAD + b"content-length: 150000\r\n\r\n" + body
            second = HEAD + b"connection: close\r\ncontent-length: 3\r\n\r\nabc"
            received = await running.exchange(first + second)
            assert received.count(b"HTTP/1.1 200 OK") == 2
            assert b"x-size: 150000\r\n" in received
            assert b"x-size: 3\r\n" in received

    run(test)


@pytest.mark.parametrize(
    "trailers", [b"x-trailer: " + b"t" * 100 + b"\r\n", b"t", b"x" * 200 + b":\r\n"], ids=["many", "one name", "empty"]
)
def test_endless_trailers_are_refused(trailers: bytes) -> None:
    """Trailers have the limit of headers, and none of them is kept."""

    async def test() -> None:
        async with serving(answer_ok) as running:
            reader, writer = await running.connect()
            writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
            sent, piece = 0, trailers * (20_000 // len(trailers))
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof() and sent < 100_000_000:
                    writer.write(piece)
                    sent += len(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
            assert sent < 20_000_000  # the sockets' buffers, and not the 100 MB of trailers

    run(test)


def test_trailers_are_no_headers() -> None:
    """Short trailers are accepted and ignored."""
    scopes: list[Scope] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answer_ok(scope, receive, send)

    async def test() -> None:
        async with serving(noting) as running:
            head = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            received = await running.exchange(head + b"3\r\nabc\r\n0\r\nx-request-id: trailer\r\n\r\n")
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"x-request-id" not in dict(scopes[0]["headers"])

    run(test)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"x: y\r\n" * (MAX_HEADERS + 1), f"the request has more than {MAX_HEADERS} headers"),
        (b"x: " + b"y" * 70_000 + b"\r\n", f"the request's headers have more than {MAX_HEADER_BYTES} bytes"),
        (b"x" * 300_000, f"the request's headers have more than {MAX_HEADER_BYTES} bytes"),
    ],
    ids=["many", "long", "endless"],
)
def test_headers_beyond_a_limit_are_refused_though_they_come_in_one_piece(headers: bytes, expected: str) -> None:
    """The number of headers and their bytes have a limit each."""

    async def test() -> None:
        async with serving(answer_ok) as running:
            received = await running.exchange(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
            assert received.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
            assert json.loads(received.split(b"\r\n\r\n")[1]) == {"error": expected}

    run(test)


def test_half_sent_headers_have_a_time_out() -> None:
    """The error 408 names the option; a connection that sends nothing is closed."""

    async def test() -> None:
        async with serving(answer_ok, client_timeout_s=0.05) as running:
            received = await running.exchange(b"GET / HTTP/1.1\r\nhost:")
            assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert b"the headers did not end within 0.05 s (client_timeout_s)" in received
            assert await running.exchange(b"") == b""
            assert await running.exchange(b"\r\n") == b""
            assert not running.server.server_state.connections

    run(test)


def test_an_idle_connection_is_closed_later_than_by_client_pools() -> None:
    """The keep-alive time closes a connection after a response; pools of aiohttp and of load balancers wait less."""
    assert KEEP_ALIVE_S > 60

    async def test() -> None:
        async with serving(answer_ok, keep_alive_s=0.05) as running:
            received = await running.exchange(HEAD + b"content-length: 3\r\n\r\nabc")
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")  # and `exchange` returns only when the server closes
        async with serving(answer_ok) as running:
            assert running.server.config.timeout_keep_alive == KEEP_ALIVE_S

    run(test)


def test_a_body_that_nobody_reads_has_a_time_out() -> None:
    """The response is sent before the body is complete, and the connection does not wait for the rest for ever."""

    async def at_once(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def test() -> None:
        async with serving(at_once, client_timeout_s=0.05) as running:
            received = await running.exchange(HEAD + b"content-length: 1000000\r\n\r\nabc")
            assert received.startswith(b"HTTP/1.1 413 ")

    run(test)


def test_an_answer_that_nobody_reads_holds_memory_until_its_time_out() -> None:
    """Its memory is reserved until the time-out, and free for other requests afterwards."""
    large = 50_000_000

    async def answer_large(scope: Scope, receive: Receive, send: Send) -> None:
        scope[MEMORY].grow_to(large)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(large if scope["path"] == "/large" else 3)})

    async def test() -> None:
        async with serving(answer_large, client_timeout_s=0.2, memory_bytes=60_000_000) as running:
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
                await turns_until(lambda: running.budget.reserved_bytes == large)
                await turns_until(lambda: not running.server.server_state.connections)
                await turns_until(lambda: running.budget.reserved_bytes == 0)
            received = await running.exchange(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            await turns_until(lambda: running.budget.reserved_bytes == 0)

    run(test)


def test_requests_that_wait_for_an_answer_are_bounded() -> None:
    """Requests beyond the limit are not parsed, and far too many of them end the connection."""
    asked: list[Any] = []
    answering = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope)
        await answering.wait()
        await answer_ok(scope, receive, send)

    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"

    async def test() -> None:
        async with serving(slow) as running:
            reader, writer = await running.connect()
            writer.write(request * 8000)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""  # more than 64 wait behind the first
            assert len(asked) == 1
            reader, writer = await running.connect()
            writer.write(request * MAX_PIPELINED)
            await turns_until(lambda: len(asked) == 2)
            answering.set()
            for _ in range(MAX_PIPELINED):
                await reader.readuntil(b"ok\r\n0\r\n\r\n")

    run(test)


def test_a_pipelined_request_is_parsed_after_the_one_before_is_answered() -> None:
    """Nothing is lost if a second request's large body arrives before the first response."""
    answering = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await answering.wait()
        await answer_ok(scope, receive, send)

    async def test() -> None:
        async with serving(slow) as running:
            reader, writer = await running.connect()
            head = HEAD + b"content-length: 500000\r\n\r\n"
            writer.write((head + b"x" * 500_000) * 3)
            await turns_until(lambda: len(running.server.server_state.tasks) == 1)
            answering.set()
            for _ in range(3):
                answer = await reader.readuntil(b"ok\r\n0\r\n\r\n")
                assert b"x-size: 500000\r\n" in answer
            await turns_until(lambda: running.budget.reserved_bytes == 0)

    run(test)


def small_server(store: Path, client_timeout_s: float) -> contextlib.AbstractContextManager[Server]:
    """Run a server with memory for two bodies of one MB."""
    floats = (onnx.TensorProto.FLOAT, ["rows", 1])
    write_onnx(store / "same/1", [onnx.helper.make_node("Identity", ["x"], ["y"])], {"x": floats}, {"y": floats})
    limits = ("--max-body-bytes", "1000000", "--max-request-memory-bytes", "2000000")
    return running_server(store, *limits, "--client-timeout-s", str(client_timeout_s))


@pytest.fixture(scope="module")
def patient_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server that waits for slow clients."""
    with small_server(tmp_path_factory.mktemp("patient"), 600) as running:
        yield running


def reserved_bytes(server: Server) -> float:
    """Return the reserved bytes of the request memory, from the metrics."""
    text = httpx.get(f"{server.http}/metrics").text
    name = 'heed_memory_reserved_bytes{budget="request memory"} '
    return next(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


def begin_body(server: Server, sent: bytes = b"x") -> socket.socket:
    """Open a connection, announce a body of one MB, and send a part of it."""
    host, port = server.http.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + sent)
    return connection


def test_bodies_reserve_memory_before_they_are_read(patient_server: Server) -> None:
    """A third body is refused as an overload until another request ends."""
    url, whole = f"{patient_server.http}/v2/models/same/infer", {"inference-header-content-length": "0"}
    held = [begin_body(patient_server) for _ in range(2)]
    while reserved_bytes(patient_server) < 2_000_000:
        pass
    response = httpx.post(url, content=bytes(1_000_000), headers=whole)
    assert (response.status_code, response.json()["error"]) == (
        429,
        "1000000 bytes of request memory are needed, 2000000 of 2000000 bytes are in use",
    )
    assert int(response.headers["retry-after"]) >= 1
    chunks = (b"x" * 1000 for _ in range(3))  # their size is unknown
    assert httpx.post(url, content=chunks, headers=whole).status_code == 429
    for connection in held:
        connection.close()
    while reserved_bytes(patient_server):
        pass
    assert httpx.post(url, content=bytes(4), headers=whole).status_code == 200


def test_a_slow_body_loses_what_it_reserved(tmp_path: Path) -> None:
    """The error 408 names the bytes that were received, and the option."""
    with small_server(tmp_path, 0.2) as server, begin_body(server) as connection:
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"the body arrives too slowly: 1 bytes are there" in answer
        assert b"within 0.2 s (client_timeout_s)" in answer
        assert reserved_bytes(server) == 0
