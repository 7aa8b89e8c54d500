"""The gRPC server with clients that send too much, send too slowly, or do not read."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from onnx import TensorProto, helper

from load_tests.http2 import (
    CANCEL,
    DATA,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    RST_STREAM,
    Http2Client,
    frame,
    prefix,
)
from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from service.transport.grpc.messages import MAX_CONTROL_BYTES, MAX_FIELDS, MAX_PARSED_BYTES
from service.transport.request_metadata import MAX_PARAMETERS, MAX_TENSORS
from tests.conftest import ROOT, Server, running_server, write_onnx

MEBIBYTE = 2**20
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a bare model that doubles numbers and repeats each as often as requested."""
    store = tmp_path_factory.mktemp("grpc") / "models"
    write_onnx(
        store / "double/1",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        {"x": (TensorProto.INT32, ["rows", "columns"])},
        {"y": (TensorProto.INT32, ["rows", "columns"])},
    )
    return store


@pytest.fixture(scope="module")
def default_server(small_store: Path) -> Iterator[Server]:
    """Run a server with default limits."""
    with running_server(small_store) as running:
        yield running


@pytest.fixture
def channel(default_server: Server) -> Iterator[grpc.Channel]:
    """Open a connection without limits of its own."""
    with grpc.insecure_channel(default_server.grpc, options=UNLIMITED) as opened:
        yield opened


def double_request(numbers: np.ndarray[Any, Any], *, raw: bool = True) -> inference_pb2.ModelInferRequest:
    """Make a request to double numbers."""
    request = inference_pb2.ModelInferRequest(model_name="double")
    tensor = request.inputs.add(name="x", datatype="INT32", shape=numbers.shape)
    if raw:
        request.raw_input_contents.append(numbers.astype(np.int32).tobytes())
    else:
        tensor.contents.int_contents.extend(numbers.astype(int).ravel().tolist())
    return request


def many_inputs() -> inference_pb2.ModelInferRequest:
    """Make as many inputs of shape [0] as fit into 16 MB."""
    request = inference_pb2.ModelInferRequest(model_name="double")
    for number in range(MAX_FIELDS):
        request.inputs.add(name=str(number), datatype="FP32", shape=[0])
    return request


def many_parameters() -> inference_pb2.ModelInferRequest:
    """Make very many request parameters."""
    request = inference_pb2.ModelInferRequest(model_name="double")
    for number in range(2 * MAX_FIELDS):
        request.parameters[str(number)].bool_param = True
    return request


def many_outputs() -> inference_pb2.ModelInferRequest:
    """Make very many requested outputs."""
    request = inference_pb2.ModelInferRequest(model_name="double")
    for number in range(2 * MAX_FIELDS):
        request.outputs.add(name=str(number))
    return request


def many_raw_contents() -> inference_pb2.ModelInferRequest:
    """Make millions of empty raw contents."""
    return inference_pb2.ModelInferRequest(model_name="double", raw_input_contents=[b""] * 4 * MEBIBYTE)


def many_empty_texts() -> inference_pb2.ModelInferRequest:
    """Make millions of empty typed elements."""
    request = inference_pb2.ModelInferRequest(model_name="double")
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=[4 * MEBIBYTE])
    tensor.contents.bytes_contents.extend([b""] * 4 * MEBIBYTE)
    return request


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (many_inputs, MAX_FIELDS),
        (many_parameters, MAX_FIELDS),
        (many_outputs, MAX_FIELDS),
        (many_raw_contents, MAX_FIELDS),
        (many_empty_texts, MAX_PARSED_BYTES),
        (lambda: double_request(np.ones((1, 4 * MEBIBYTE)), raw=False), MAX_PARSED_BYTES),
        (lambda: inference_pb2.ModelInferRequest(model_name="m" * 15 * MEBIBYTE), MAX_PARSED_BYTES),
        (lambda: inference_pb2.ModelInferRequest(model_name="double", id="i" * 15 * MEBIBYTE), MAX_PARSED_BYTES),
    ],
)
def test_inference_messages_of_many_parts_are_refused(
    channel: grpc.Channel, make: Callable[[], inference_pb2.ModelInferRequest], limit: int
) -> None:
    """Parsing them would block other requests; the error names the limit."""
    with pytest.raises(grpc.RpcError) as refused:
        inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(make(), timeout=60)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(limit) in refused.value.details()


@pytest.mark.parametrize(
    ("field", "limit"), [("inputs", MAX_TENSORS), ("outputs", MAX_TENSORS), ("parameters", MAX_PARAMETERS)]
)
def test_short_messages_have_a_bounded_number_of_parts(channel: grpc.Channel, field: str, limit: int) -> None:
    """A short message may still not have thousands of inputs, outputs or parameters."""
    request = inference_pb2.ModelInferRequest(model_name="double")
    for number in range(limit + 1):
        if field == "parameters":
            request.parameters[str(number)].bool_param = True
        else:
            getattr(request, field).add(name=str(number))
    with pytest.raises(grpc.RpcError) as refused:
        inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == f"the request has {limit + 1} {field}, the limit is {limit}"


@pytest.mark.parametrize(
    "ask",
    [
        lambda channel, text: health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=text), timeout=60
        ),
        lambda channel, text: next(
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=text), timeout=60)
        ),
        lambda channel, text: next(
            reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(file_by_filename=text)]), timeout=60
            )
        ),
        lambda channel, text: inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelReady(
            inference_pb2.ModelReadyRequest(name=text), timeout=60
        ),
        lambda channel, text: inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelMetadata(
            inference_pb2.ModelMetadataRequest(name=text), timeout=60
        ),
    ],
    ids=["Check", "Watch", "reflection", "ModelReady", "ModelMetadata"],
)
def test_calls_that_take_a_name_limit_its_length(channel: grpc.Channel, ask: Callable[[Any, str], Any]) -> None:
    """Health, reflection and metadata refuse a name of 15 MB before they use it."""
    with pytest.raises(grpc.RpcError) as refused:
        ask(channel, "n" * 15 * MEBIBYTE)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_CONTROL_BYTES) in refused.value.details()


@pytest.mark.parametrize(
    ("call", "request_message"),
    [
        ("ClassifyText", heed_pb2.ClassifyTextRequest(text="t" * 2 * MEBIBYTE)),
        ("Translate", heed_pb2.TranslateRequest(text="t" * 2 * MEBIBYTE)),
        ("ClassifyImage", heed_pb2.ClassifyImageRequest(model="m" * 2 * MEBIBYTE)),
        ("Explain", heed_pb2.ExplainRequest(text="t", target="t" * 2 * MEBIBYTE)),
    ],
)
def test_typed_calls_have_the_limits_of_typed_elements(channel: grpc.Channel, call: str, request_message: Any) -> None:
    """Texts and names of typed calls are refused above one mebibyte."""
    with pytest.raises(grpc.RpcError) as refused:
        getattr(heed_pb2_grpc.HeedStub(channel), call)(request_message, timeout=60)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_PARSED_BYTES) in refused.value.details()


@pytest.mark.parametrize("raw", [True, False])
def test_long_tensors_are_returned_whole(channel: grpc.Channel, raw: bool) -> None:
    """Tensors that are read and written in pieces are complete: raw up to 16 MB, typed up to 1 MB."""
    numbers = np.arange(2 * MEBIBYTE if raw else MEBIBYTE // 4, dtype=np.int32).reshape(2, -1) - 1000
    if not raw:
        numbers = np.abs(numbers) % 100  # one byte each
    response = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
        double_request(numbers, raw=raw), timeout=60
    )
    if raw:
        doubled = np.frombuffer(response.raw_output_contents[0], np.int32)
    else:
        doubled = np.array(response.outputs[0].contents.int_contents)
    assert np.array_equal(doubled.reshape(numbers.shape), 2 * numbers)
    assert list(response.outputs[0].shape) == list(numbers.shape)


def test_a_server_that_is_compatible_with_triton(small_store: Path, tmp_path: Path) -> None:
    """Typed requests are answered raw, it has Triton's name, and inputs [n] are shown as [n, 1], which is taken."""
    shutil.copytree(small_store, tmp_path / "models")
    shutil.copytree(ROOT / "model_store/sentiment-small", tmp_path / "models/sentiment")
    with (
        running_server(tmp_path / "models", "--triton-compatible", "on") as server,
        grpc.insecure_channel(server.grpc) as opened,
    ):
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(opened)
        for raw in (True, False):
            response = stub.ModelInfer(double_request(np.array([[1, 2]]), raw=raw))
            assert np.frombuffer(response.raw_output_contents[0], np.int32).tolist() == [2, 4]
            assert not response.outputs[0].HasField("contents")
        assert stub.ServerMetadata(inference_pb2.ServerMetadataRequest()).name == "triton"
        (text,) = stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="sentiment")).inputs
        assert [*text.shape] == [-1, 1]
        request = inference_pb2.ModelInferRequest(model_name="sentiment")
        tensor = request.inputs.add(name="text", datatype="BYTES", shape=[2, 1])
        tensor.contents.bytes_contents.extend([b"fine", b"dreadful"])
        assert [[*output.shape] for output in stub.ModelInfer(request).outputs] == [[2], [2], [2, 2]]


def test_a_connection_has_a_bounded_number_of_streams(small_store: Path, default_server: Server) -> None:
    """The server announces how many concurrent calls a connection may have."""
    with Http2Client(default_server.grpc) as client:
        assert client.server_settings[MAX_CONCURRENT_STREAMS] == 128
    with running_server(small_store, "--max-concurrent-streams", "7") as server, Http2Client(server.grpc) as client:
        assert client.server_settings[MAX_CONCURRENT_STREAMS] == 7


def test_the_number_of_connections_is_bounded(small_store: Path) -> None:
    """One beyond the limit is closed; one that comes after another has ended is not."""
    with running_server(small_store, "--max-connections", "2") as server:
        with Http2Client(server.grpc) as first, Http2Client(server.grpc) as second:
            assert first.server_settings
            assert second.server_settings
            with pytest.raises(OSError, match=r"closed|reset"):
                Http2Client(server.grpc)
        with grpc.insecure_channel(server.grpc) as channel:
            live = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(
                inference_pb2.ServerLiveRequest(), wait_for_ready=True, timeout=60
            )
        assert live.live


def test_connections_reset_in_the_middle_of_a_message_are_closed(small_store: Path) -> None:
    """They do not stay open in the server."""
    message = prefix(15 * MEBIBYTE) + bytes(200_000)

    def leave(address: str) -> None:
        with contextlib.suppress(OSError), Http2Client(address) as client:
            stream = client.begin()
            client.send(stream, message)
            client.socket.sendall(frame(RST_STREAM, 0, stream, CANCEL) + frame(DATA, 0, stream, bytes(10_000)))

    with running_server(small_store) as server:
        sockets_before = num_sockets(server.popen.pid)
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(leave, [server.grpc] * 400))
        with grpc.insecure_channel(server.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            left = None
            for _ in range(10_000):  # calls, each of which gives the server time to react
                assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status
                if (left := num_sockets(server.popen.pid)) <= sockets_before + 1:
                    break
    assert left == sockets_before + 1  # the channel's


def num_sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in this moment
            links.append(str(descriptor.readlink()))
    return sum(link.startswith("socket:") for link in links)


def test_a_call_without_a_message_gets_an_error(default_server: Server) -> None:
    """A client that closes its half of the stream at once does not wait."""
    with grpc.insecure_channel(default_server.grpc) as channel:
        empty = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            empty(iter([]), timeout=60)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "the call has no message"


def test_a_message_that_is_sent_too_slowly_is_refused(small_store: Path) -> None:
    """A call that has sent half of its message is ended after the time limit, with its status."""
    with running_server(small_store, "--grpc-message-timeout-s", "0.5") as server, Http2Client(server.grpc) as client:
        stream = client.begin()
        client.send(stream, prefix(MEBIBYTE) + b"\0" * (MEBIBYTE // 2))
        trailers = [frame for frame in client.read_until_ended(stream) if frame.kind == HEADERS]
        assert b"the message has not arrived within 0.5 s" in b"".join(frame.payload for frame in trailers)


def test_a_shutdown_does_not_wait_for_stalled_clients(small_store: Path) -> None:
    """Half a message, an unread answer and open streams end long before the drain time."""
    with running_server(small_store, "--drain-timeout-s", "3600") as server:
        body = double_request(np.ones((1, 1000))).SerializeToString()
        with (
            Http2Client(server.grpc, settings={INITIAL_WINDOW_SIZE: 0}) as unread,
            Http2Client(server.grpc) as half_sent,
            grpc.insecure_channel(server.grpc) as channel,
        ):
            stream = unread.begin()
            unread.send(stream, prefix(len(body)) + body, end=True)
            while unread.read().kind != HEADERS:  # those of the answer, whose message has no window
                pass
            half_sent.send(half_sent.begin(), prefix(MEBIBYTE) + b"\0" * 1000)
            asked = threading.Event()

            def ask_and_wait() -> Iterator[reflection_pb2.ServerReflectionRequest]:
                yield reflection_pb2.ServerReflectionRequest(list_services="")
                asked.wait()

            next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask_and_wait()))
            assert server.stop() == 0
            asked.set()


def test_old_connections_are_replaced_without_a_failed_call(small_store: Path) -> None:
    """The server closes connections above the given age."""
    with (
        running_server(small_store, "--max-connection-age-s", "0.5") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub, enough, answered = inference_pb2_grpc.GRPCInferenceServiceStub(channel), threading.Event(), [0]

        def ask() -> None:
            while not enough.is_set():
                stub.ModelInfer(double_request(np.ones((1, 3))), timeout=60)
                answered[0] += 1

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(3):  # ages of connections that are at least as old as the channel's
                with Http2Client(server.grpc) as client:
                    while client.read().kind != GOAWAY:
                        pass
            alive = asking.is_alive()
        finally:
            enough.set()
            asking.join()
        assert alive
        assert answered[0] > 0


def test_every_line_of_the_log_is_structured(default_server: Server) -> None:
    """A port in use and bytes that are no HTTP/2 leave no lines of gRPC's core in the log."""
    with Http2Client(default_server.grpc) as client:
        client.socket.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        with pytest.raises(OSError, match=r"closed|reset"):
            client.read_until_ended(client.next_stream)
    port = default_server.grpc.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "service", "--http-port", "0", "--grpc-port", port]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert second.returncode == 1
    entries = [json.loads(line) for line in second.stderr.splitlines()]
    assert f"gRPC cannot listen on 127.0.0.1:{port}: it is in use, or no address of this machine" in [
        entry.get("why") for entry in entries
    ]
    assert [entry for entry in default_server.log if set(entry) == {"event"}] == []
