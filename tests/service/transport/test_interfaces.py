"""The same request gives the same answer and the same error over every interface."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from service.transport.grpc.server import CORE_NICENESS, POLLER_NICENESS
from service.transport.request_metadata import MAX_READ_AT_ONCE
from service.transport.turns import THREAD_NICENESS
from tests.conftest import Server

TEXTS = [
    "A wonderful film.",
    "dull",
    "It's not bad, but I have seen better.",
    "Schöne Bilder, leere Geschichte. 🎬",
]
LONG = "word " * 400
TENSOR = {"shape": [1], "datatype": "BYTES", "data": ["x"]}
SLOW = [" ".join(TEXTS * 6)] * 64  # some tenths of a second of work


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    """Open a connection to the server."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def oip(channel: grpc.Channel) -> inference_pb2_grpc.GRPCInferenceServiceStub:
    """Open the Open Inference Protocol over gRPC."""
    return inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def typed(channel: grpc.Channel) -> heed_pb2_grpc.HeedStub:
    """Open the typed calls."""
    return heed_pb2_grpc.HeedStub(channel)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def text_request(texts: list[str], model: str = "sentiment", **fields: Any) -> inference_pb2.ModelInferRequest:
    """Make a request with typed texts."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return inference_pb2.ModelInferRequest(model_name=model, inputs=[tensor], **fields)


def text_json(texts: list[str], **fields: Any) -> dict[str, Any]:
    """Make the same request as JSON."""
    return {
        "inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}],
        **fields,
    }


def over_rest(http: httpx.Client, texts: list[str]) -> list[tuple[str, float]]:
    """Return label and score of each text."""
    outputs = http.post("/v2/models/sentiment/infer", json=text_json(texts)).raise_for_status().json()["outputs"]
    data = {output["name"]: output["data"] for output in outputs}
    return list(zip(data["label"], data["score"], strict=True))


def test_every_interface_gives_the_same_answer(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    typed: heed_pb2_grpc.HeedStub,
    http: httpx.Client,
) -> None:
    """gRPC, REST, typed call and task API agree on each text."""
    for text in TEXTS:
        response = oip.ModelInfer(text_request([text]))
        outputs = {output.name: output.contents for output in response.outputs}
        label, score = (
            outputs["label"].bytes_contents[0].decode(),
            outputs["score"].fp32_contents[0],
        )
        answer = typed.ClassifyText(heed_pb2.ClassifyTextRequest(model="sentiment", text=text))
        ((best, other),) = http.post("/models/sentiment", json={"inputs": text}).raise_for_status().json()
        assert over_rest(http, [text]) == [(label, pytest.approx(score, abs=1e-6))]
        assert (answer.label, answer.score) == (label, pytest.approx(score, abs=1e-6))
        assert (best["label"], best["score"]) == (label, pytest.approx(score, abs=1e-6))
        assert best["score"] + other["score"] == pytest.approx(1.0)
        assert sum(outputs["probabilities"].fp32_contents) == pytest.approx(1.0)


def test_a_batch_gives_the_same_answers_as_single_requests(http: httpx.Client) -> None:
    """Texts of different length agree within 1e-5, together and alone."""
    together = over_rest(http, TEXTS)
    alone = [over_rest(http, [text])[0] for text in TEXTS]
    assert [label for label, _ in together] == [label for label, _ in alone]
    np.testing.assert_allclose([score for _, score in together], [score for _, score in alone], atol=1e-5)


def test_raw_requests_get_raw_answers(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    """A client that sends raw contents gets raw contents with the same values."""
    raw_text = TEXTS[0].encode()
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
    request = inference_pb2.ModelInferRequest(
        model_name="sentiment",
        id="r1",
        inputs=[tensor],
        raw_input_contents=[struct.pack("<I", len(raw_text)) + raw_text],
    )
    response = oip.ModelInfer(request)
    plain = oip.ModelInfer(text_request([TEXTS[0]]))
    assert response.id == "r1"
    assert [output.name for output in response.outputs] == [
        "label",
        "score",
        "probabilities",
    ]
    probabilities = np.frombuffer(response.raw_output_contents[2], np.float32)
    np.testing.assert_allclose(probabilities, plain.outputs[2].contents.fp32_contents, atol=1e-6)


def test_the_receipt_has_stage_times_batch_and_version(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    typed: heed_pb2_grpc.HeedStub,
    http: httpx.Client,
) -> None:
    """Every interface returns it."""
    response = oip.ModelInfer(text_request(TEXTS))
    names = {"preprocess_us", "queue_us", "compute_us", "postprocess_us"}
    names |= {"batch_size", "padded_tokens", "batch_tokens", "truncated"}
    assert set(response.parameters) == names
    assert response.model_version == "1"
    assert response.parameters["compute_us"].int64_param > 0
    assert response.parameters["batch_tokens"].int64_param > 0
    receipt = typed.ClassifyText(heed_pb2.ClassifyTextRequest(model="sentiment", text="fine")).receipt
    assert (receipt.model_version, receipt.batch_size, receipt.truncated) == (
        "1",
        1,
        False,
    )
    rest = http.post("/v2/models/sentiment/versions/1/infer", json=text_json(["fine"])).json()
    assert (rest["model_version"], set(rest["parameters"])) == ("1", names)
    headers = http.post("/models/sentiment", json={"inputs": "fine"}).headers
    assert headers["x-heed-batch-size"] == "1"
    assert headers["x-heed-model-version"] == "1"


def test_texts_are_truncated_only_on_request(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    typed: heed_pb2_grpc.HeedStub,
    http: httpx.Client,
) -> None:
    """A text beyond the model's limit is refused by default; a truncated one is marked."""
    request = text_request([LONG])
    request.parameters["truncate"].bool_param = True
    assert oip.ModelInfer(request).parameters["truncated"].bool_param
    body = text_json([LONG], parameters={"truncate": True})
    assert http.post("/v2/models/sentiment/infer", json=body).json()["parameters"]["truncated"] is True
    task = {"inputs": LONG, "parameters": {"truncation": True}}
    assert http.post("/models/sentiment", json=task).headers["x-heed-truncated"] == "true"
    cut = typed.ClassifyText(heed_pb2.ClassifyTextRequest(model="sentiment", text=LONG, truncate=True))
    assert cut.receipt.truncated


def test_tokenizing_does_not_block_the_event_loop(http: httpx.Client, server: Server) -> None:
    """No other request waits half as long as tokenizing too long texts takes."""
    body = text_json(["\u6620" * 8000] * 16)  # each character is a word
    longest_s = 0.0
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(httpx.post, f"{server.http}/v2/models/sentiment/infer", json=body, timeout=60)
        while not slow.done():
            started_s = time.monotonic()
            assert http.get("/healthz").status_code == 200
            longest_s = max(longest_s, time.monotonic() - started_s)
    assert "the model takes at most 256" in slow.result().json()["error"]
    assert longest_s < 0.5 * slow.result().elapsed.total_seconds()


def test_too_many_texts_are_refused_by_their_shape(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    """An error in the contents is not even seen."""
    request = text_request(["x"])
    request.inputs[0].shape[0] = 200_000
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(request)
    assert raised.value.details() == "the request has 200000 inputs, the limit is 64 (max_request_rows)"


def test_a_deadline_ends_the_wait_for_tokenizing(http: httpx.Client) -> None:
    """The engine is not called."""
    body = text_json(["A wonderful film. " * 250] * 64, parameters={"truncate": True})
    response = http.post("/v2/models/sentiment/infer", json=body, headers={"x-request-timeout-ms": "20"})
    assert (response.status_code, response.json()["error"]) == (
        504,
        "the deadline passed before the texts were tokenized",
    )


# A bad request over both protocols, the gRPC code, the HTTP status, and a part of the error's text.
BAD_REQUESTS = {
    "empty text": (["fine", ""], {}, "INVALID_ARGUMENT", 400, "text[1] is empty"),
    "blank text": ([" \n"], {}, "INVALID_ARGUMENT", 400, "text[0] is empty"),
    "too long": (
        [LONG],
        {},
        "INVALID_ARGUMENT",
        400,
        "tokens, the model takes at most 256",
    ),
    "empty text behind long ones": (
        ["fine" + 8000 * " ", "fine" + 8000 * " ", ""],
        {},
        "INVALID_ARGUMENT",
        400,
        "text[2] is empty",
    ),
    "far too long": (
        ["x" * 8193],
        {},
        "INVALID_ARGUMENT",
        400,
        "text[0] has 8193 characters, the model takes at most 8192 (256 tokens)",
    ),
    "no rows": ([], {}, "INVALID_ARGUMENT", 400, "the request has no inputs"),
    "too many rows": (
        ["x"] * 65,
        {},
        "INVALID_ARGUMENT",
        400,
        "65 inputs, the limit is 64 (max_request_rows)",
    ),
    "unknown model": (
        ["x"],
        {"model": "nope"},
        "NOT_FOUND",
        404,
        "Request for unknown model: 'nope'",
    ),
    "unknown version": (
        ["x"],
        {"version": "7"},
        "NOT_FOUND",
        404,
        "version '7'; versions here: 1",
    ),
    "model that failed to load": (
        ["x"],
        {"model": "damaged"},
        "UNAVAILABLE",
        503,
        "model.onnx is damaged",
    ),
    "wrong input": (
        ["x"],
        {"name": "words"},
        "INVALID_ARGUMENT",
        400,
        "unknown input words; the model has text",
    ),
    "wrong shape": (
        ["x"],
        {"shape": [1, 1, 1]},
        "INVALID_ARGUMENT",
        400,
        "shape [1, 1, 1], the model takes [-1]",
    ),
    "wrong count": (["x"], {"shape": [3]}, "INVALID_ARGUMENT", 400, "tensor 'text'"),
    "negative shape": (
        ["x"],
        {"shape": [-1]},
        "INVALID_ARGUMENT",
        400,
        "negative dimension",
    ),
    "unknown datatype": (
        ["x"],
        {"datatype": "TEXT"},
        "INVALID_ARGUMENT",
        400,
        "unknown datatype 'TEXT'",
    ),
    "unknown output": (
        ["x"],
        {"output": "logit"},
        "INVALID_ARGUMENT",
        400,
        "unknown output logit",
    ),
    "negative timeout": (
        ["x"],
        {"timeout": -5},
        "INVALID_ARGUMENT",
        400,
        "parameter 'timeout'",
    ),
    "timeout in the past": (
        ["x"] * 64,
        {"timeout": 1},
        "DEADLINE_EXCEEDED",
        504,
        "deadline",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_gets_the_same_error_over_both_protocols(
    case: str, oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """The text names the field and the limit."""
    texts, change, code, status, expected = BAD_REQUESTS[case]
    model, version = change.get("model", "sentiment"), change.get("version", "")
    request = text_request(texts, model, model_version=version)
    body = text_json(texts)
    for field in ("name", "shape", "datatype"):
        if field in change:
            body["inputs"][0][field] = change[field]
    if "name" in change:
        request.inputs[0].name = change["name"]
    if "datatype" in change:
        request.inputs[0].datatype = change["datatype"]
    if "shape" in change:
        del request.inputs[0].shape[:]
        request.inputs[0].shape.extend(change["shape"])
    if "output" in change:
        request.outputs.add(name=change["output"])
        body["outputs"] = [{"name": change["output"]}]
    if "timeout" in change:
        request.parameters["timeout"].int64_param = change["timeout"]
        body["parameters"] = {"timeout": change["timeout"]}
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(request)
    path = f"/v2/models/{model}/versions/{version}/infer" if version else f"/v2/models/{model}/infer"
    response = http.post(path, json=body)
    assert (raised.value.code().name, response.status_code) == (code, status)
    text = response.json()["error"]
    assert expected in text
    assert expected in raised.value.details()
    if "elements" not in text:  # the protocols describe the amount of data differently
        assert text.split(" ms")[0][:20] == raised.value.details().split(" ms")[0][:20]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "the body is not JSON"),
        (b'{"inputs": [', "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"id": ' + b"[" * 10000, "$.id"),
        (b'{"parameters": {"x": ' + b"[" * 20_000, "nested too deeply"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (
            b'{"inputs": [{"name": "text", "shape": "1", "datatype": "BYTES"}]}',
            "`$.inputs[0].shape`",
        ),
        (
            b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]}',
            "neither data nor binary_data_size",
        ),
        (
            b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}]}',
            "must be strings",
        ),
    ],
)
def test_malformed_json_is_refused_with_its_position(body: bytes, expected: str, http: httpx.Client) -> None:
    """It is never an internal error."""
    response = http.post("/v2/models/sentiment/infer", content=body)
    assert response.status_code == 400
    assert expected in response.json()["error"]


@pytest.mark.parametrize(
    ("inputs", "binary", "header", "expected"),
    [
        (
            {"shape": [1], "parameters": {"binary_data_size": 6}},
            b"\x02\0\0\0ab",
            0,
            None,
        ),
        (
            {"shape": [1], "parameters": {"binary_data_size": 7}},
            b"\x02\0\0\0ab",
            0,
            "binary_data_size is 7, 6 bytes are left",
        ),
        (
            {"shape": [1], "parameters": {"binary_data_size": 5}},
            b"\x02\0\0\0ab",
            0,
            "says 2 bytes, 1 are left",
        ),
        (
            {"shape": [2], "parameters": {"binary_data_size": 6}},
            b"\x02\0\0\0ab",
            0,
            "1 BYTES elements, but its shape takes 2",
        ),
        (
            {"shape": [1], "parameters": {"binary_data_size": 3}},
            b"\x02\0\0",
            0,
            "ends within the length of element 0",
        ),
        (
            {"shape": [1], "parameters": {"binary_data_size": 6}},
            b"\x02\0\0\0abc",
            0,
            "1 bytes of binary data that belong to no",
        ),
        (
            {"shape": [1], "parameters": {"binary_data_size": "6"}},
            b"\x02\0\0\0ab",
            0,
            "binary_data_size is '6'",
        ),
        (
            {"shape": [1], "parameters": {"binary_data_size": 5}},
            b"\x01\0\0\0\xff",
            0,
            "text[0] is not UTF-8",
        ),
        (
            {"shape": [1], "parameters": {"binary_data_size": 6}},
            b"\x02\0\0\0ab",
            10**6,
            "the body has",
        ),
    ],
)
def test_binary_lengths_are_checked(
    inputs: dict[str, Any],
    binary: bytes,
    header: int,
    expected: str | None,
    http: httpx.Client,
) -> None:
    """Every wrong length of REST's binary extension has its own error."""
    document = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", **inputs}]}).encode()
    length = str(len(document) + header)
    response = http.post(
        "/v2/models/sentiment/infer",
        content=document + binary,
        headers={"inference-header-content-length": length},
    )
    if expected is None:
        assert response.status_code == 200, response.text
    else:
        assert response.status_code == 400
        assert expected in response.json()["error"]


@pytest.mark.parametrize("digits", [19, 400, 5000])
def test_very_long_numbers_are_refused(digits: int, http: httpx.Client) -> None:
    """They may be in headers or parameters; the error names the field."""
    huge, url = "9" * digits, "/v2/models/sentiment/infer"
    timeout = json.dumps(text_json(["x"])).removesuffix("}").encode() + b', "parameters": {"timeout": %s}}'
    for response, expected in (
        (http.post(url, json=text_json(["x"]), headers={"x-request-timeout-ms": huge}), "header x-request-timeout-ms"),
        (
            http.post(url, json=text_json(["x"]), headers={"inference-header-content-length": huge}),
            "header inference-header-content-length",
        ),
        (http.post(url, content=timeout % huge.encode()), "out of range" if digits > 4300 else "parameter 'timeout'"),
    ):
        assert response.status_code == 400
        assert expected in response.json()["error"]
    long = http.post(url, json=text_json(["x"]), headers={"x-request-timeout-ms": "9" * 18})
    assert long.status_code == 200


def test_the_whole_body_can_be_the_only_tensor(http: httpx.Client) -> None:
    """With header length 0 it is one text, or floats whose shape follows from their number."""
    headers = {"inference-header-content-length": "0"}
    response = http.post("/v2/models/sentiment/infer", content=b"wunderbar", headers=headers)
    assert response.headers["inference-header-content-length"].isdecimal()
    doubled = http.post(
        "/v2/models/double/infer",
        content=np.ones(6, np.float32).tobytes(),
        headers=headers,
    )
    size = int(doubled.headers["inference-header-content-length"])
    assert json.loads(doubled.content[:size])["outputs"][0]["shape"] == [2, 3]
    assert np.frombuffer(doubled.content[size:], np.float32).tolist() == [2.0] * 6
    assert http.post("/v2/models/double/infer", content=b"12345", headers=headers).status_code == 400


def test_names_in_errors_are_truncated(oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client) -> None:
    """gRPC would otherwise send "metadata too large"; letters beyond ASCII take the most room there."""
    name = "\U0001f3ac" * 5000
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(text_request(["x"], model=name))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert raised.value.details().startswith("Request for unknown model: '\U0001f3ac\U0001f3ac")
    response = http.post("/v2/models/sentiment/infer", json={"inputs": [{"name": "x" * 5000} | TENSOR]})
    assert (response.status_code, response.json()["error"][:16]) == (400, "unknown input xx")
    assert len(response.json()["error"]) < 700


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"])
def test_invalid_messages_are_refused(message: bytes, server: Server, channel: grpc.Channel) -> None:
    """They are no protobuf or have a name that is not UTF-8; they are counted and logged."""
    for service in ("inference.GRPCInferenceService/ModelInfer", "heed.v1.Heed/TranslateStream"):
        kind = channel.unary_stream if service.endswith("Stream") else channel.unary_unary
        with pytest.raises(grpc.RpcError) as raised:
            list(kind(f"/{service}")(message, metadata=(("x-request-id", f"malformed-{message[0]}"),)))
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details().startswith("the message is not a request of this call: ")
    assert server.wait_for("request refused", request_id=f"malformed-{message[0]}")["outcome"] == "invalid"


def test_compressed_messages_are_refused(oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """gRPC applies its size limit only after decompression, and the error names the algorithm."""
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(text_request(["x" * 900_000]), compression=grpc.Compression.Gzip)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.details() == "Compression algorithm 'gzip' is disabled."


def exchange(server: Server, sent: bytes) -> bytes:
    """Send bytes on a connection of its own; return the response until the server closes it."""
    host, port = server.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
        return received


def test_endless_headers_are_refused(server: Server) -> None:
    """The error for many headers, one long header and bytes that are no HTTP has the usual form."""
    answer = exchange(server, b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 1_000_000)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert json.loads(answer.split(b"\r\n\r\n")[1]) == {"error": "the request's headers have more than 65536 bytes"}
    answer = exchange(server, b"what?\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(answer.split(b"\r\n\r\n")[1]) == {"error": "Invalid HTTP request received."}


def test_a_missing_body_ends_with_the_deadline(server: Server, http: httpx.Client) -> None:
    """The connection is closed."""
    name = 'heed_requests_total{model="sentiment",outcome="expired",protocol="http",version="1"}'
    before = metric(http, name)
    head = b"POST /models/sentiment HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 50\r\ncontent-length: 90\r\n\r\n"
    answer = exchange(server, head + b'{"inputs": ')
    assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert b"\r\nconnection: close\r\n" in answer
    error = "the deadline passed when 11 bytes of the body had arrived"
    assert json.loads(answer.split(b"\r\n\r\n")[1]) == {"error": error}
    assert metric(http, name) == before + 1


def test_a_body_over_the_limit_is_refused_over_both_protocols(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """HTTP answers 413 with the limit, gRPC its own code for a message that is too large."""
    response = http.post("/models/sentiment", content=b" " * 1_000_001)
    assert (response.status_code, response.json()["error"]) == (
        413,
        "the body is larger than the limit of 1000000 bytes",
    )

    def pieces() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 100_000

    assert http.post("/models/sentiment", content=pieces()).status_code == 413
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(text_request(["x" * 1_000_001]))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bare_models_support_every_datatype(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """Two rows of each type come back unchanged over JSON and raw gRPC."""
    values: dict[str, list[Any]] = {
        "BOOL": [True, False],
        "FP16": [0.5, -2.0],
        "FP32": [1.5, 3e38],
        "FP64": [1e-300, -1.0],
    }
    for bits in (8, 16, 32, 64):
        values[f"INT{bits}"] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
        values[f"UINT{bits}"] = [0, 2**bits - 1]
    inputs = [{"name": name, "shape": [2, 1], "datatype": name, "data": data} for name, data in values.items()]
    outputs = http.post("/v2/models/all-types/infer", json={"inputs": inputs}).raise_for_status().json()["outputs"]
    echoed = {output["datatype"]: output["data"] for output in outputs}
    for name, data in values.items():
        assert echoed[name] == pytest.approx(data), name
    metadata = {
        tensor.name: tensor for tensor in oip.ModelMetadata(inference_pb2.ModelMetadataRequest(name="all-types")).inputs
    }
    numpy_types = {"BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8"}
    arrays = {
        name: np.array(
            data,
            numpy_types.get(name) or f"{'u' if name[0] == 'U' else 'i'}{int(name.lstrip('UINT')) // 8}",
        )
        for name, data in values.items()
    }
    request = inference_pb2.ModelInferRequest(model_name="all-types")
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=metadata[name].datatype, shape=[2, 1])
        request.raw_input_contents.append(array.tobytes())
    response = oip.ModelInfer(request)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert raw == arrays[output.datatype].tobytes(), output.datatype


def test_long_typed_and_raw_messages_are_read_alike(oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """Many typed numbers are read in a thread, raw ones at once."""
    numbers = np.zeros((MAX_READ_AT_ONCE, 3), dtype=np.float32)
    typed = inference_pb2.ModelInferRequest(model_name="double")
    tensor = typed.inputs.add(name="x", datatype="FP32", shape=numbers.shape)
    tensor.contents.fp32_contents.extend(numbers.ravel().tolist())
    raw = inference_pb2.ModelInferRequest(model_name="double", raw_input_contents=[numbers.tobytes()])
    raw.inputs.add(name="x", datatype="FP32", shape=numbers.shape)
    for request in (typed, raw):
        with pytest.raises(grpc.RpcError) as raised:
            oip.ModelInfer(request)
        expected = f"the request has {MAX_READ_AT_ONCE} rows, the limit is 64 (max_request_rows)"
        assert raised.value.details() == expected
    tensor.contents.fp32_contents.append(1.0)
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(typed)
    count = numbers.size
    assert raised.value.details() == f"tensor 'x': {count + 1} elements, but its shape takes {count}"


def test_bare_models_keep_their_own_shapes(http: httpx.Client) -> None:
    """Examples are a model without a batch dimension, one of strings, and shapes that do not fit."""

    def infer(model: str, *inputs: dict[str, Any]) -> httpx.Response:
        return http.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs)})

    floats = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2.5]}
    assert infer("sum", floats).json()["outputs"] == [{"name": "total", "shape": [], "datatype": "FP32", "data": [4.0]}]
    strings = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["ä", ""]}
    assert infer("same", strings).json()["outputs"][0]["data"] == ["ä", ""]
    assert "datatype FP32, the model takes BYTES" in infer("same", floats | {"name": "text"}).json()["error"]
    assert "shape [2], the model takes [-1, 3]" in infer("double", floats).json()["error"]
    assert "is not of datatype FP32" in infer("sum", floats | {"data": ["1", "2"]}).json()["error"]
    assert "given twice" in infer("sum", floats, floats).json()["error"]
    assert "input x is missing" in infer("sum").json()["error"]


def test_metadata_and_readiness_over_both_protocols(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """The six calls of the protocol and their REST forms agree."""
    assert oip.ServerLive(inference_pb2.ServerLiveRequest()).live
    assert oip.ServerReady(inference_pb2.ServerReadyRequest()).ready
    server = oip.ServerMetadata(inference_pb2.ServerMetadataRequest())
    for path in ("/v2", "/v2/"):
        document = http.get(path).json()
        assert (document["name"], document["version"]) == (server.name, server.version) == ("heed", document["version"])
    model = oip.ModelMetadata(inference_pb2.ModelMetadataRequest(name="sentiment"))
    document = http.get("/v2/models/sentiment").json()
    assert document["versions"] == list(model.versions) == ["1"]
    assert document["platform"] == model.platform == "onnxruntime_onnx"
    for side, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
        assert document[side] == [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in tensors]
    assert not model.properties  # MLServer's client cannot parse the field
    for name, ready in (("sentiment", True), ("damaged", False)):
        assert oip.ModelReady(inference_pb2.ModelReadyRequest(name=name)).ready is ready
        response = http.get(f"/v2/models/{name}/versions/1/ready")
        assert (response.status_code, response.json()["ready"]) == (
            200 if ready else 503,
            ready,
        )
    assert not oip.ModelReady(inference_pb2.ModelReadyRequest(name="nope")).ready
    assert http.get("/v2/models/nope/ready").status_code == 404


def test_a_model_that_fails_to_load_is_named_with_its_reason(
    http: httpx.Client,
) -> None:
    """Other models are served; /readyz and the model's own readiness give the reason."""
    document = http.get("/readyz").raise_for_status().json()
    assert document["ready"] is True
    assert document["not_served"].keys() == {"broken/1", "damaged/1", "no-version"}
    assert "sha256" in document["not_served"]["damaged/1"]
    assert "Protobuf parsing failed" in document["not_served"]["broken/1"]
    assert "put the files into no-version/1/" in document["not_served"]["no-version"]
    assert http.get("/v2/models/damaged/ready").json()["reason"] == document["not_served"]["damaged/1"]
    assert http.get("/healthz").status_code == 200
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json()["ready"] is True


def test_standard_health_and_reflection(channel: grpc.Channel) -> None:
    """grpc.health.v1 covers the server, its services and its models; reflection lists all services."""
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "inference.GRPCInferenceService", "heed.v1.Heed", "sentiment"):
        status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
        assert status == health_pb2.HealthCheckResponse.SERVING, name
    status = health.Check(health_pb2.HealthCheckRequest(service="damaged")).status
    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([question]))
    services = {service.name for service in answer.list_services_response.service}
    assert services >= {
        "inference.GRPCInferenceService",
        "heed.v1.Heed",
        "grpc.health.v1.Health",
    }


def test_the_request_id_is_returned(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client, server: Server
) -> None:
    """It is the caller's or a new one; errors and the log have it too."""
    assert oip.ModelInfer(text_request(["x"])).id != oip.ModelInfer(text_request(["x"])).id != ""
    _, call = oip.ModelInfer.with_call(text_request(["x"]), metadata=(("x-request-id", "mine-1"),))
    assert ("x-request-id", "mine-1") in [tuple(entry) for entry in call.trailing_metadata()]
    response = http.post("/models/sentiment", json={"inputs": ""}, headers={"x-request-id": "mine-2"})
    assert response.headers["x-request-id"] == "mine-2"
    assert server.wait_for("request refused", request_id="mine-2")["why"] == "inputs is empty"
    first, second = (http.get("/v2").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert http.get("/v2", headers={"x-request-id": "x" * 200}).headers["x-request-id"] != "x" * 200


def test_every_kind_of_deadline_ends_a_request(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """The kinds are gRPC's own, the `timeout` parameter, and the HTTP header."""
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(text_request(SLOW), timeout=0.01)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    response = http.post(
        "/v2/models/sentiment/infer",
        json=text_json(SLOW),
        headers={"x-request-timeout-ms": "10"},
    )
    assert response.status_code == 504
    for wrong in ("0", "-1", "soon", "1.5"):
        response = http.post(
            "/models/sentiment",
            json={"inputs": "x"},
            headers={"x-request-timeout-ms": wrong},
        )
        assert (
            response.status_code,
            "x-request-timeout-ms" in response.json()["error"],
        ) == (400, True)
    assert over_rest(http, ["fine"])


def metric(http: httpx.Client, name: str) -> float:
    """Return the sum of a series that is written in full, or 0."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def wait_until_computing(http: httpx.Client) -> None:
    """Wait until the sentiment model computes rows, for a bounded time because the call may be over already."""
    for _ in range(200):
        if metric(http, 'heed_in_flight_rows{model="sentiment"'):
            return


async def test_clients_that_go_away_are_counted_as_cancelled(server: Server, http: httpx.Client) -> None:
    """A gRPC cancel and an HTTP hang-up end the request on the server."""
    request, body = text_request(SLOW), json.dumps(text_json(SLOW)).encode()
    for protocol in ("grpc", "http"):
        name = f'heed_requests_total{{model="sentiment",outcome="cancelled",protocol="{protocol}"'
        before = metric(http, name)
        deadline_s = time.monotonic() + 20
        while metric(http, name) == before:  # the answer may come before the cancellation
            assert time.monotonic() < deadline_s, f"{protocol}: no request was cancelled"
            if protocol == "grpc":
                async with grpc.aio.insecure_channel(server.grpc) as channel:
                    call = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
                    await asyncio.to_thread(wait_until_computing, http)
                    call.cancel()
            else:
                host, port = server.http.removeprefix("http://").split(":")
                _, writer = await asyncio.open_connection(host, int(port))
                head = f"POST /v2/models/sentiment/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await asyncio.to_thread(wait_until_computing, http)
                writer.close()
                await writer.wait_closed()
    assert over_rest(http, ["still here"])


def test_task_api_parameters(http: httpx.Client) -> None:
    """top_k, function_to_apply and lists work; an invalid parameter is named."""

    def ask(inputs: Any, **parameters: Any) -> httpx.Response:
        return http.post("/models/sentiment", json={"inputs": inputs, "parameters": parameters})

    assert [len(scores) for scores in ask(["good", "bad", "ugly"], top_k=1).json()] == [
        1,
        1,
        1,
    ]
    ((first, second),) = ask("good", function_to_apply="none").json()
    logits = [first["score"], second["score"]]
    ((first, second),) = ask("good", function_to_apply="sigmoid").json()
    assert [first["score"], second["score"]] == pytest.approx([1 / (1 + np.exp(-logit)) for logit in logits])
    assert "inputs[1] is empty" in ask(["x", ""]).json()["error"]
    assert "$.parameters.top_k" in ask("x", top_k=0).json()["error"]
    assert "function_to_apply" in ask("x", function_to_apply="cube").json()["error"]
    assert "top_n" in ask("x", top_n=1).json()["error"]
    assert "parameter 'top_k' must be an integer, not 1.5" in ask("x", top_k=1.5).json()["error"]
    assert (
        "'candidate_labels' belongs to zero-shot-classification; model 'sentiment' is a text-classification"
        in (ask("x", candidate_labels=["a", "b"]).json()["error"])
    )
    assert "'num_beams' belongs to translation" in ask("x", num_beams=2).json()["error"]
    streamed = http.post("/models/sentiment", json={"inputs": "x", "stream": True})
    assert (streamed.status_code, "parameter 'stream' belongs to translation" in streamed.text) == (400, True)
    assert ask(7).status_code == 400
    refused = http.post("/models/double", json={"inputs": "x"})
    assert (refused.status_code, "takes tensors" in refused.json()["error"]) == (
        400,
        True,
    )


def test_the_task_api_takes_null_and_every_spelling(http: httpx.Client) -> None:
    """Clients write every field of a structure, strategies in capitals, and integers as floats."""
    plain = http.post("/models/sentiment", json={"inputs": "good"}).raise_for_status().json()
    for parameters in (
        None,
        dict.fromkeys(("top_k", "function_to_apply", "truncation", "explain")),
        {"top_k": 2.0, "function_to_apply": "SOFTMAX"},
        {"truncation": "do_not_truncate"},
        {"truncation": "ONLY_SECOND"},
    ):
        body = {"inputs": "good", "parameters": parameters, "options": None, "stream": None}
        response = http.post("/models/sentiment", json=body)
        assert (response.status_code, response.json()) == (200, plain), parameters
    for truncation, status in (
        (True, 200),
        ("longest_first", 200),
        ("ONLY_FIRST", 200),
        (False, 400),
        ("DO_NOT_TRUNCATE", 400),
        ("only_second", 400),
        ("middle", 400),
    ):
        response = http.post("/models/sentiment", json={"inputs": LONG, "parameters": {"truncation": truncation}})
        assert response.status_code == status, truncation
    explained = {"inputs": "good", "parameters": {"explain": {"seed": 7.0, "n_samples": 16.0, "method": "lime"}}}
    assert (
        http.post("/models/sentiment", json=explained).raise_for_status().json()["explanation"]["fidelity"]["seed"] == 7
    )


@pytest.mark.parametrize("body", [b'{"inputs": "x", "parameters": {"num_beams": 2}}', b"\xff\xd8\xff", b"", b"{}"])
def test_the_task_api_names_a_missing_model_before_it_reads_the_body(body: bytes, http: httpx.Client) -> None:
    """The model decides how the body is read."""
    for model, status, expected in (("nope", 404, "unknown model: 'nope'"), ("damaged", 503, "model.onnx is damaged")):
        response = http.post(f"/models/{model}", content=body)
        assert response.status_code == status
        assert expected in response.json()["error"]


def test_unknown_paths_and_methods_answer_in_json(http: httpx.Client) -> None:
    """The error has the usual form."""
    missing = http.get("/nope", headers={"x-request-id": "mine-3"})
    assert (missing.status_code, missing.headers["x-request-id"]) == (404, "mine-3")
    assert "no such path: /nope" in missing.json()["error"]
    assert http.get("/models/sentiment").status_code == 405


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
def test_grpc_threads_have_lower_priority(server: Server) -> None:
    """This fails when gRPC renames its threads."""
    own = os.getpriority(os.PRIO_PROCESS, server.popen.pid)
    threads = [int(task.name) for task in Path(f"/proc/{server.popen.pid}/task").iterdir()]
    behind = [os.getpriority(os.PRIO_PROCESS, thread) - own for thread in threads]
    # The thread for long steps starts when a request first needs it.
    assert sorted({*behind} - {THREAD_NICENESS}) == [0, POLLER_NICENESS, CORE_NICENESS]
    assert behind.count(POLLER_NICENESS) == 1


def test_the_index_lists_every_model_of_the_store(http: httpx.Client) -> None:
    """It has task, versions and classes, or the reason why a model is not served."""
    index = http.get("/v2/models").json()
    models = {model["name"]: model for model in index["models"]}
    assert index["grpc_port"] is None  # this server took a free one
    assert models.keys() >= {"sentiment", "double", "damaged", "broken", "no-version"}
    assert models["sentiment"] == {
        "name": "sentiment",
        "version": "1",
        "versions": ["1"],
        "task": "text-classification",
        "labels": ["NEGATIVE", "POSITIVE"],
        "explain": ["occlusion", "lime", "shap", "attention", "gradients"],
        "ready": True,
        "reason": None,
        "precision": "float32",
        "cache": None,
        "batching": "golden examples are answered in a batch as alone",
    }
    assert (models["double"]["task"], models["double"]["labels"]) == ("tensors", [])
    assert (models["double"]["batching"], models["damaged"]["batching"]) == ("proved", None)
    assert (models["damaged"]["task"], models["damaged"]["ready"], models["damaged"]["versions"]) == (None, False, [])
    assert "model.onnx is damaged" in models["damaged"]["reason"]
    assert "no version folder" in models["no-version"]["reason"]


@pytest.mark.parametrize("path", ["/v2/models/sentiment/card", "/v2/models/sentiment/versions/1/card"])
def test_a_model_card_is_the_folders_readme(path: str, http: httpx.Client, store: Path) -> None:
    """It is returned as Markdown, with and without a version."""
    answer = http.get(path)
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.text == (store / "sentiment/1/README.md").read_text()


@pytest.mark.parametrize(
    ("model", "status", "text"),
    [
        ("double", 404, "model 'double' version '1' has no model card"),
        ("damaged", 503, "model.onnx is damaged"),
        ("nope", 404, "unknown model: 'nope'"),
        ("sentiment/versions/7", 404, "'sentiment' version '7'"),
    ],
)
def test_a_missing_card_is_an_error(model: str, status: int, text: str, http: httpx.Client) -> None:
    """The error is that of any other request to the model."""
    answer = http.get(f"/v2/models/{model}/card")
    assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text


def test_metrics_have_each_stage_and_outcome(http: httpx.Client) -> None:
    """There are series per model and protocol; unknown names make no series of their own."""
    over_rest(http, ["x"])
    http.post("/v2/models/made-up-name/infer", json=text_json(["x"]))
    text = http.get("/metrics").text
    for stage in ("request", "preprocess", "queue", "compute", "postprocess"):
        assert f'heed_{stage}_seconds_count{{model="sentiment",protocol="http",version="1"}}' in text
    assert 'heed_requests_total{model="sentiment",outcome="ok",protocol="http",version="1"}' in text
    assert 'heed_requests_total{model="(unknown)",outcome="not_found",protocol="http",version=""}' in text
    assert "made-up-name" not in text
    assert 'heed_model_ready{model="sentiment",version="1"} 1.0' in text
    assert 'heed_model_ready{model="damaged",version="1"} 0.0' in text
    assert 'heed_batch_rows_count{model="sentiment",version="1"}' in text


def test_every_failed_request_is_counted_and_logged_once(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client, server: Server
) -> None:
    """This holds for every stage, and under the model's name if there is one."""
    torn = text_request(["x"])
    torn.raw_input_contents.append(b"x")
    infer, large = "/v2/models/sentiment/infer", b" " * 1_000_001
    cases: list[tuple[str, str, str, Any]] = [
        ("sentiment", "invalid", "http", lambda **given: http.post(infer, content=b"{", **given)),
        ("sentiment", "invalid", "http", lambda **given: http.post("/models/sentiment", content=b"{", **given)),
        ("sentiment", "invalid", "http", lambda **given: http.post(infer, content=large, **given)),
        ("sentiment", "invalid", "http", lambda **given: http.post(infer, json=text_json([""]), **given)),
        ("damaged", "unavailable", "http", lambda **given: http.post("/models/damaged", content=b"x", **given)),
        ("sentiment", "invalid", "grpc", lambda headers: oip.ModelInfer(torn, metadata=tuple(headers.items()))),
        (
            "damaged",
            "unavailable",
            "grpc",
            lambda headers: oip.ModelInfer(text_request(["x"], "damaged"), metadata=tuple(headers.items())),
        ),
    ]
    for number, (model, outcome, protocol, ask) in enumerate(cases):
        name = f'heed_requests_total{{model="{model}",outcome="{outcome}",protocol="{protocol}",version="1"}}'
        before, request_id = metric(http, name), f"refused-{number}"
        with contextlib.suppress(grpc.RpcError):
            ask(headers={"x-request-id": request_id})
        assert metric(http, name) == before + 1, number
        assert server.wait_for("request refused", request_id=request_id)["outcome"] == outcome
    host, port = server.http.removeprefix("http://").split(":")
    name = 'heed_requests_total{model="double",outcome="cancelled",protocol="http",version="1"}'
    with socket.create_connection((host, int(port))) as hasty:
        hasty.sendall(
            b"POST /v2/models/double/infer HTTP/1.1\r\nhost: x\r\nx-request-id: hasty\r\ncontent-length: 9\r\n\r\n{"
        )
    server.wait_for("request refused", request_id="hasty", outcome="cancelled")
    assert metric(http, name) == 1


def test_the_docs_page_is_self_contained(http: httpx.Client) -> None:
    """It is served whole, and describes every route."""
    page = http.get("/docs").text
    assert "https://" not in page
    assert "http://" not in page
    assert "/v2/models/{model}/infer" in http.get("/openapi.json").json()["paths"]
