"""Accepting connections: many in one iteration of the event loop, and no more than the limit."""

import json
import socket

from tests.service.transport.http.bare_server import answer_ok, run, serving, turns_until


def test_connections_that_come_at_once_are_accepted_in_a_few_turns_of_the_loop() -> None:
    """An iteration may take long on a busy server, so 128 connections must not wait for 128 iterations."""

    async def test() -> None:
        async with serving(answer_ok) as running:
            clients = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(128)]
            assert await turns_until(lambda: len(running.server.server_state.connections) == 128) < 16
            for client in clients:
                client.close()

    run(test)


def test_connections_over_the_limit_are_refused() -> None:
    """The refusal names the limit; closing one connection makes room for another."""

    async def test() -> None:
        async with serving(answer_ok, max_connections=2) as running:
            held = [await running.connect() for _ in range(2)]
            await turns_until(lambda: len(running.server.server_state.connections) == 2)
            refused = await running.exchange(b"")
            assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert json.loads(refused.split(b"\r\n\r\n")[1]) == {"error": "there are 2 connections, the limit"}
            held[0][1].close()
            await turns_until(lambda: len(running.server.server_state.connections) == 1)
            reader, writer = await running.connect()
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"

    run(test)
