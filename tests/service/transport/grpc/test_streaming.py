"""The stream of inference requests: order, errors, pieces of translations, limits, the end of client and server."""

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from load_tests.http2 import DATA, INITIAL_WINDOW_SIZE, WINDOW_UPDATE, Http2Client, frame, prefix
from proto import inference_pb2, inference_pb2_grpc
from service.transport.grpc.receiving import MAX_IDLE_STREAMS
from tests.conftest import Server, running_server, write_onnx

STREAM_CALL = "/inference.GRPCInferenceService/ModelStreamInfer"
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
TEXT = "three blue dogs"
Request = inference_pb2.ModelInferRequest


class Stream:
    """A client's stream, whose requests are sent one at a time."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=UNLIMITED)
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        open_stream = self._channel.stream_stream(
            STREAM_CALL, response_deserializer=inference_pb2.ModelStreamInferResponse.FromString
        )
        self.answers = open_stream(iter(self._requests.get, None), timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.put(None)
        self.answers.cancel()
        self._channel.close()

    def send(self, *requests: Request | bytes) -> None:
        """Send requests without waiting for answers."""
        for request in requests:
            self._requests.put(request if isinstance(request, bytes) else request.SerializeToString())

    def ask(self, request: Request | bytes) -> Any:
        """Send a request and return the next answer."""
        self.send(request)
        return next(self.answers)

    def close(self) -> list[Any]:
        """Send no more requests, and return the answers that are left."""
        self._requests.put(None)
        return list(self.answers)


def text_request(texts: list[str], model: str = "sentiment", **fields: Any) -> Request:
    """Make a request with typed texts."""
    request = Request(model_name=model, **fields)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def piecewise(model: str = "dogs", text: str = TEXT, **fields: Any) -> Request:
    """Make a request whose answer comes in pieces."""
    request = text_request([text], model, **fields)
    request.parameters["stream"].bool_param = True
    return request


def is_final(answer: Any) -> bool:
    """Return whether an answer is the last one to its request."""
    return bool(answer.infer_response.parameters["triton_final_response"].bool_param)


def counted(server: Server, model: str, outcome: str) -> float:
    """Return how many requests over gRPC have ended so."""
    found = re.search(
        rf'heed_requests_total\{{model="{model}",outcome="{outcome}",protocol="grpc",version="[^"]*"\}} (\S+)',
        httpx.get(f"{server.http}/metrics").text,
    )
    return float(found[1]) if found else 0.0


def test_requests_are_answered_in_order_and_an_error_does_not_end_the_stream(server: Server) -> None:
    """Each answer has the id of its request and the mark of the last one; each request is counted once."""
    before = {outcome: counted(server, "sentiment", outcome) for outcome in ("ok", "invalid")}
    unreadable = b"\xff\xff"
    with Stream(server.grpc) as stream:
        stream.send(
            text_request(["good"], id="1"),
            text_request(["good"], "nope", id="2"),
            text_request(["good"] * 65, id="3"),
            unreadable,
            text_request(["bad", "good"], id="5"),
        )
        answers = stream.close()
    assert [answer.infer_response.id for answer in answers if answer.infer_response.id in "12345"] == list("1235")
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, True, False]
    assert "Request for unknown model" in answers[1].error_message
    assert "max_request_rows" in answers[2].error_message
    assert "not a request of this call" in answers[3].error_message
    assert all(is_final(answer) for answer in answers)
    assert list(answers[4].infer_response.outputs[0].contents.bytes_contents) == [b"NEGATIVE", b"POSITIVE"]
    assert answers[4].infer_response.parameters["compute_us"].int64_param > 0
    assert counted(server, "sentiment", "ok") == before["ok"] + 2
    assert counted(server, "sentiment", "invalid") == before["invalid"] + 1


def test_an_answer_on_a_stream_is_that_of_a_call(server: Server) -> None:
    """Raw and typed tensors; the parameter that Triton's clients add changes nothing."""
    with Stream(server.grpc) as stream, grpc.insecure_channel(server.grpc) as channel:
        call = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        for raw in (False, True):
            request = text_request(["good", "bad"], id="7", model_version="1")
            request.outputs.add(name="score")
            if raw:
                request.inputs[0].ClearField("contents")
                request.raw_input_contents.append(b"\4\0\0\0good\3\0\0\0bad")
            expected = call(request)
            request.parameters["triton_enable_empty_final_response"].bool_param = True
            answer = stream.ask(request).infer_response
            assert (answer.outputs, answer.raw_output_contents) == (expected.outputs, expected.raw_output_contents)
            assert (answer.id, answer.model_version) == ("7", "1")


def test_a_translation_comes_in_pieces_if_its_request_asks_for_them(translation_server: Server) -> None:
    """The pieces joined are the greedy translation; the last answer has the score and the receipt, and is marked."""
    with Stream(translation_server.grpc) as stream, grpc.insecure_channel(translation_server.grpc) as channel:
        greedy = text_request([TEXT], "dogs")
        greedy.parameters["num_beams"].int64_param = 1
        whole = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(greedy)
        stream.send(piecewise(id="a"), text_request([TEXT], "dogs", id="b"))
        *answers, after = stream.close()
        pieces, last = answers[:-1], answers[-1]
        assert len(pieces) > 1
        text = b"".join(piece.infer_response.outputs[0].contents.bytes_contents[0] for piece in pieces)
        assert text == whole.outputs[0].contents.bytes_contents[0]
        assert [is_final(answer) for answer in answers] == [False] * len(pieces) + [True]
        assert {answer.infer_response.id for answer in answers} == {"a"}
        assert {answer.infer_response.model_version for answer in answers} == {"1"}
        assert [output.name for output in last.infer_response.outputs] == ["score"]
        np.testing.assert_allclose(
            last.infer_response.outputs[0].contents.fp32_contents, whole.outputs[1].contents.fp32_contents, rtol=1e-5
        )
        assert last.infer_response.parameters["compute_us"].int64_param > 0
        assert after.infer_response.id == "b"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda request: request.parameters["stream"].__setattr__("string_param", "yes"), "'stream' must be true"),
        (lambda request: request.parameters["num_beams"].__setattr__("int64_param", 4), "a stream takes 1"),
        (lambda request: request.outputs.add(name="nope"), "unknown output nope"),
        (lambda request: request.__setattr__("model_name", "sentiment"), "sentiment"),
        (lambda request: request.CopyFrom(text_request([TEXT, TEXT], "dogs")), "takes one text, the request has 2"),
    ],
)
def test_pieces_that_cannot_be_given_are_refused(
    change: Callable[[Request], None], text: str, translation_server: Server
) -> None:
    """A parameter of another type, beams, an unknown output, a model that does not stream, two texts."""
    request = piecewise()
    change(request)
    if not request.parameters:
        request.parameters["stream"].bool_param = True
    before = httpx.get(f"{translation_server.http}/v2/models/{request.model_name}/stats").json()
    with Stream(translation_server.grpc) as stream:
        answer = stream.ask(request)
        assert text in answer.error_message
        assert not stream.ask(text_request([TEXT], "dogs")).error_message
    after = httpx.get(f"{translation_server.http}/v2/models/{request.model_name}/stats").json()
    failed = [told["model_stats"][0]["inference_stats"]["fail"]["count"] for told in (before, after)]
    assert failed[1] - failed[0] == 1


def test_a_client_that_leaves_cancels_its_request_and_others_are_answered_meanwhile(
    translation_server: Server,
) -> None:
    """A long request of one stream stops neither other streams nor calls; its rows are free when the client leaves."""
    before = counted(translation_server, "endless", "cancelled")
    long = piecewise("endless")
    long.parameters["max_new_tokens"].int64_param = 4000
    with Stream(translation_server.grpc) as slow, Stream(translation_server.grpc) as other:
        assert not is_final(slow.ask(long))
        assert not other.ask(text_request([TEXT], "dogs")).error_message
        slow.answers.cancel()
        for _ in range(10_000):  # calls, each of which gives the server time to react
            if counted(translation_server, "endless", "cancelled") == before + 1:
                break
        assert counted(translation_server, "endless", "cancelled") == before + 1


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a bare model that doubles numbers."""
    store = tmp_path_factory.mktemp("streams") / "models"
    numbers = {"x": (TensorProto.INT32, ["rows", "columns"])}
    doubled = {"y": (TensorProto.INT32, ["rows", "columns"])}
    write_onnx(store / "double/1", [helper.make_node("Add", ["x", "x"], ["y"])], numbers, doubled)
    return store


@pytest.fixture(scope="module")
def small_server(small_store: Path) -> Iterator[Server]:
    """Run a server whose requests may hold as much memory as the largest two of them."""
    memory = str(2 * 16 * 2**20)
    with running_server(small_store, "--max-request-memory-bytes", memory) as running:
        yield running


def numbers_request(count: int) -> Request:
    """Make a request to double numbers."""
    request = Request(model_name="double", raw_input_contents=[np.arange(count, dtype=np.int32).tobytes()])
    request.inputs.add(name="x", datatype="INT32", shape=[1, count])
    return request


def test_long_tensors_pass_a_stream_whole_and_give_their_memory_back(small_server: Server) -> None:
    """More of them than the request memory holds at once, one after another."""
    with Stream(small_server.grpc) as stream:
        for _ in range(4):
            (raw,) = stream.ask(numbers_request(3 * 2**20)).infer_response.raw_output_contents
            assert np.array_equal(np.frombuffer(raw, np.int32), 2 * np.arange(3 * 2**20))
    metrics = httpx.get(f"{small_server.http}/metrics").text
    assert 'heed_memory_reserved_bytes{budget="request memory"} 0.0' in metrics


def test_idle_streams_hold_no_memory_and_are_bounded(small_server: Server) -> None:
    """Long requests are answered beside them; one stream too many ends the one that has been idle for longest."""
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(MAX_IDLE_STREAMS):
            streams.append(stack.enter_context(Stream(small_server.grpc)))
            assert not streams[-1].ask(numbers_request(3)).error_message  # it is idle after its answer
        busy = stack.enter_context(Stream(small_server.grpc))
        for _ in range(3):
            assert not busy.ask(numbers_request(3 * 2**20)).error_message
        with pytest.raises(grpc.RpcError) as ended:
            next(streams[0].answers)
        assert ended.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"more than {MAX_IDLE_STREAMS} streams wait for requests" in ended.value.details()
        assert not streams[-1].ask(numbers_request(3)).error_message


def test_a_stream_without_requests_ends_with_an_error(small_store: Path) -> None:
    """Triton's client would otherwise send requests that nobody answers."""
    with running_server(small_store, "--grpc-message-timeout-s", "0.5") as server, Stream(server.grpc) as stream:
        assert not stream.ask(numbers_request(3)).error_message
        with pytest.raises(grpc.RpcError) as ended:
            next(stream.answers)
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert ended.value.details() == "no request has arrived on the stream within 0.5 s; open a new one"


def test_a_client_that_does_not_read_holds_its_own_stream_alone(small_store: Path) -> None:
    """Others are answered, it gets its answer when it reads, and a shutdown does not wait for it."""
    body = numbers_request(3).SerializeToString()
    with (
        running_server(small_store, "--drain-timeout-s", "3600") as server,
        Http2Client(server.grpc, settings={INITIAL_WINDOW_SIZE: 0}) as unread,
        Stream(server.grpc) as other,
    ):
        stream = unread.begin(STREAM_CALL)
        for _ in range(2):
            unread.send(stream, prefix(len(body)) + body)
        assert not other.ask(numbers_request(3)).error_message
        unread.socket.sendall(frame(WINDOW_UPDATE, 0, stream, (300).to_bytes(4, "big")))  # for the first answer
        while (got := unread.read()).kind != DATA:
            pass
        assert b"double" in got.payload
        assert server.stop() == 0


def test_a_shutdown_ends_idle_streams_and_waits_for_requests(small_store: Path) -> None:
    """The drain time of an hour is not used."""
    with running_server(small_store, "--drain-timeout-s", "3600") as server, Stream(server.grpc) as stream:
        assert not stream.ask(numbers_request(3)).error_message
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(grpc.RpcError) as ended:
            next(stream.answers)
        stopping.join(60)
        assert not stopping.is_alive()
    assert (ended.value.code(), ended.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "the server is shutting down",
    )
