"""Shutdown: the server is unready first, then drains, and no client delays it."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from proto import inference_pb2, inference_pb2_grpc
from tests.conftest import ROOT, Server, running_server, write_onnx
from tests.service.test_lifecycle import ask_grpc, ask_rest, gauge

WIDTH = 200_000
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def models(store: Path, tmp_path: Path) -> Path:
    """Make a small store with a model that has a manifest and a bare one."""
    for name in ("sentiment", "double"):
        shutil.copytree(store / name, tmp_path / "models" / name)
    return tmp_path / "models"


def readiness(server: Server) -> int:
    """Return the status of `/readyz`."""
    try:
        with urllib.request.urlopen(f"{server.http}/readyz", timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_sigterm_makes_a_server_unready_while_it_still_answers(models: Path) -> None:
    """Both protocols report it and answer new requests; a second SIGTERM ends the wait."""
    with (
        running_server(models, "--unready-before-drain-s", "300", "--drain-timeout-s", "600") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        health, inference = health_pb2_grpc.HealthStub(channel), inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (readiness(server), inference.ServerReady(inference_pb2.ServerReadyRequest()).ready) == (200, True)
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for("unready")
        assert (readiness(server), inference.ServerReady(inference_pb2.ServerReadyRequest()).ready) == (503, False)
        assert [health.Check(health_pb2.HealthCheckRequest(service=name)).status for name in ("", "double")] == [
            NOT_SERVING,
            NOT_SERVING,
        ]
        assert (ask_rest(server.http, 2), ask_grpc(server.grpc, 3)) == (2, 3)
        assert not [entry for entry in server.log if entry["event"] == "draining"]
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(timeout=100) == 0
        server.wait_for("stopped")


def test_a_server_drains_after_its_time_of_being_unready(models: Path) -> None:
    """No second signal is needed."""
    with running_server(models, "--unready-before-drain-s", "0.2") as server:
        assert server.stop() == 0
        events = [entry["event"] for entry in server.log]
        assert [event for event in events if event in {"unready", "draining", "stopped"}] == [
            "unready",
            "draining",
            "stopped",
        ]


def connected(server: Server) -> socket.socket:
    """Open a connection to the HTTP port."""
    host, _, port = server.http.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)))


@contextmanager
def proxy_that_stops_reading(address: str) -> Iterator[tuple[str, threading.Event]]:
    """Run a TCP proxy that stops reading from the server once the event is set."""
    host, _, port = address.rpartition(":")
    stopped, ended = threading.Event(), threading.Event()

    def to_server(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while some := client.recv(65536):
                server.sendall(some)

    def to_client(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while some := server.recv(1024):
                if stopped.is_set():
                    ended.wait()
                    return
                client.sendall(some)

    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        stack.callback(ended.set)

        def accept() -> None:
            client, _ = listener.accept()
            server = socket.create_connection((host, int(port)))
            for end in (client, server):
                stack.callback(end.close)
                stack.callback(lambda end=end: suppress_shutdown(end))
            for forward in (to_server, to_client):
                threading.Thread(target=forward, args=(client, server), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", stopped


def suppress_shutdown(end: socket.socket) -> None:
    """Shut down both directions of a connection that may have ended."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def test_stalled_clients_do_not_delay_shutdown(models: Path) -> None:
    """They send half a header or half a body, or do not read; the drain time is long."""
    nodes = [
        helper.make_node("Constant", [], ["zeros"], value=numpy_helper.from_array(np.zeros(WIDTH, np.float32))),
        helper.make_node("Add", ["x", "zeros"], ["y"]),
    ]
    narrow, wide = (TensorProto.FLOAT, ["rows", 1]), (TensorProto.FLOAT, ["rows", WIDTH])
    write_onnx(models / "wide/1", nodes, {"x": narrow}, {"y": wide})
    with (
        running_server(models, "--drain-timeout-s", "900", "--client-timeout-s", "900") as server,
        connected(server) as half_header,
        connected(server) as half_body,
        proxy_that_stops_reading(server.grpc) as (address, stopped),
        grpc.insecure_channel(address) as channel,
    ):
        half_header.sendall(b"POST /models/sentiment HTTP/1.1\r\nHost: a\r\n")
        half_body.sendall(b'POST /models/sentiment HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"inputs":')
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(inference_pb2.ServerReadyRequest()).ready
        stopped.set()
        # An answer of 800 kB: a connection's window has 64 KiB.
        tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1])
        request = inference_pb2.ModelInferRequest(model_name="wide", inputs=[tensor])
        request.raw_input_contents.append(np.ones(1, np.float32).tobytes())
        unread = stub.ModelInfer.future(request)
        while not num_answered(server, "wide"):
            assert not unread.done()
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(timeout=120) == 0
        assert not unread.done()


def num_answered(server: Server, model: str) -> float:
    """Return the server's count of answered requests to a model."""
    try:
        return gauge(server.http, f'heed_requests_total{{model="{model}",outcome="ok"')
    except StopIteration:  # none yet
        return 0.0


HAPROXY = """
global
  stats socket {socket}
defaults
  mode http
  retries 0
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout check 30s
frontend in
  bind 127.0.0.1:{port}
  default_backend servers
backend servers
  option httpchk GET /readyz
  default-server check inter 200ms fall 1 rise 1
  server a 127.0.0.1:{a}
  server b 127.0.0.1:{b}
"""


def free_ports(number: int) -> list[int]:
    """Return free ports."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in taken]


@contextmanager
def served_at(models: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on these ports with default options."""
    command = [sys.executable, "-m", "service", "--model-store", str(models), "--http-port", str(port)]
    popen = subprocess.Popen(
        [*command, "--grpc-port", "0"], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()


def states_of(stats: Path) -> dict[str, str]:
    """Return HAProxy's states of its servers: UP, DOWN or in transition."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(stats))
        asking.sendall(b"show stat\n")
        answer = b"".join(iter(lambda: asking.recv(65536), b"")).decode()
    rows = [line.split(",") for line in answer.splitlines() if line.startswith("servers,")]
    return {row[1]: row[17] for row in rows}


def wait_until_up(stats: Path) -> None:
    """Wait until HAProxy sends requests to both servers."""
    ends_s = time.monotonic() + 120
    while [states_of(stats).get(name) for name in ("a", "b")] != ["UP", "UP"]:
        assert time.monotonic() < ends_s, states_of(stats)
        threading.Event().wait(0.05)


def wait_until_ready(port: int) -> None:
    """Wait until a server reports that it is ready."""
    ends_s = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60):
            return
        assert time.monotonic() < ends_s
        threading.Event().wait(0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not here")
def test_servers_behind_haproxy_are_rolled_without_a_failed_request(models: Path, tmp_path: Path) -> None:
    """60 requests a second, none retried, continue while one server after the other restarts."""
    port, *ports = free_ports(3)
    config, stats, ended = tmp_path / "haproxy.cfg", tmp_path / "stats", threading.Event()
    config.write_text(HAPROXY.format(socket=stats, port=port, a=ports[0], b=ports[1]))
    body = json.dumps({"inputs": "A wonderful film."}).encode()

    def ask() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/models/sentiment", body, timeout=60) as response:
                return str(response.status)
        except (OSError, urllib.error.HTTPError) as error:
            return repr(error)

    def ask_at_a_rate(pool: ThreadPoolExecutor, asked: list[Future[str]]) -> None:
        while not ended.wait(1 / 60):
            asked.append(pool.submit(ask))

    with ExitStack() as stack:
        servers = [stack.enter_context(served_at(models, each)) for each in ports]
        proxy = stack.enter_context(subprocess.Popen(["haproxy", "-f", str(config), "-db"]))
        stack.callback(proxy.terminate)
        while not stats.exists():
            assert proxy.poll() is None
        wait_until_up(stats)  # HAProxy's state of servers before its first check
        for each in ports:
            wait_until_ready(each)
        pool, asked = stack.enter_context(ThreadPoolExecutor(64)), list[Future[str]]()
        load = threading.Thread(target=ask_at_a_rate, args=(pool, asked))
        load.start()
        try:
            for number, each in enumerate(ports):
                servers[number].send_signal(signal.SIGTERM)
                assert servers[number].wait(timeout=60) == 0
                servers[number] = stack.enter_context(served_at(models, each))
                wait_until_ready(each)
                wait_until_up(stats)
        finally:
            ended.set()
            load.join()
        answers = Counter(each.result() for each in asked)
        assert answers.keys() == {"200"}, answers
        assert answers["200"] > 100
