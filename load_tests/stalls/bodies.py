"""Bodies and messages of the cases, made before anything is measured."""

import json
import math
import struct
from io import BytesIO
from typing import Any

from PIL import Image

from load_tests.stalls.sending import Send, in_turn, over_grpc, over_http
from load_tests.stalls.servers import Server
from load_tests.stalls.stores import LOOP
from proto import inference_pb2

SENTIMENT, IMAGES = "/models/sentiment", "/models/cifar10-vit"
BINARY_HEADER = "inference-header-content-length"
REFUSALS = 2_000


def v2_json(model: str, name: str, kind: str, shape: list[int], data: bytes, before: bytes = b"") -> Send:
    """Create a REST request of the Open Inference Protocol with data that is JSON already."""
    tensor = json.dumps({"name": name, "shape": shape, "datatype": kind}).encode()[:-1]
    return over_http(
        f"/v2/models/{model}/infer", b"{" + before + b'"inputs": [' + tensor + b', "data": ' + data + b"}]}"
    )


def v2_binary(model: str, kind: str, shape: list[int], raw: bytes, *, binary_answer: bool) -> Send:
    """Create a REST request of the Open Inference Protocol with the binary extension."""
    tensor = {"name": "x", "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(raw)}}
    parameters = {"binary_data_output": binary_answer}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return over_http(f"/v2/models/{model}/infer", head + raw, {BINARY_HEADER: str(len(head))})


def message(model: str, kind: str = "", shape: tuple[int, ...] = (), name: str = "x", **contents: Any) -> Any:
    """Create a gRPC request of the Open Inference Protocol with typed contents."""
    request = inference_pb2.ModelInferRequest(model_name=model)
    if kind:
        tensor = request.inputs.add(name=name, datatype=kind, shape=shape)
        for field, values in contents.items():
            getattr(tensor.contents, field).extend(values)
    return request


def raw_message(model: str, kind: str, shape: tuple[int, ...], raw: bytes) -> Send:
    """Create a gRPC request of the Open Inference Protocol with raw contents."""
    request = message(model, kind, shape)
    request.raw_input_contents.append(raw)
    return over_grpc(request.SerializeToString())


def with_parameters(count: int) -> bytes:
    """Create a message with this many parameters."""
    request = message("sentiment", "BYTES", (1,), "text", bytes_contents=[b"x"])
    for number in range(count):
        request.parameters[f"k{number:07d}"].int64_param = 1
    return bytes(request.SerializeToString())


def with_inputs(model: str, count: int) -> bytes:
    """Create a message with this many empty inputs."""
    request = message(model)
    for number in range(count):
        request.inputs.add(name=str(number), datatype="FP32", shape=[0])
    return bytes(request.SerializeToString())


def with_outputs(count: int) -> bytes:
    """Create a message that asks for this many outputs."""
    request = message("sentiment", "BYTES", (1,), "text", bytes_contents=[b"x"])
    for number in range(count):
        request.outputs.add(name=str(number))
    return bytes(request.SerializeToString())


def json_inputs(count: int) -> Send:
    """Create a JSON request with this many empty inputs."""
    tensors = b",".join(b'{"name":"%d","shape":[0],"datatype":"FP32","data":[]}' % number for number in range(count))
    return over_http("/v2/models/sentiment/infer", b'{"inputs":[' + tensors + b"]}")


def image(side: int, kind: str, **options: Any) -> bytes:
    """Create an image of one colour, whose file is small."""
    buffer = BytesIO()
    Image.new("RGB", (side, side), "navy").save(buffer, kind, **options)
    return buffer.getvalue()


def webp(side: int) -> bytes:
    """Create a lossless WebP file."""
    return image(side, "WEBP", lossless=True, method=0)


def repeated(item: bytes, count: int) -> bytes:
    """Create a JSON list of this many equal items."""
    return b"[" + b",".join([item] * count) + b"]"


def keys(count: int) -> bytes:
    """Create a JSON object of this many keys."""
    return b"{" + b",".join(b'"k%07d":1' % number for number in range(count)) + b"}"


def text_body(text: bytes) -> Send:
    """Create a task API body with a text that is JSON already and may be truncated."""
    return over_http(SENTIMENT, b'{"inputs": "' + text + b'", "parameters": {"truncation": true}}')


def truncated_text(text: bytes) -> Send:
    """Create a gRPC request of the Open Inference Protocol with a text that may be truncated."""
    request = message("sentiment", "BYTES", (1,), "text", bytes_contents=[text])
    request.parameters["truncate"].bool_param = True
    return over_grpc(request.SerializeToString())


def bytes_elements(count: int) -> bytes:
    """Encode texts of one letter as the protocol packs them."""
    return (struct.pack("<I", 1) + b"x") * count


def loop_http(turns: int, timeout_s: float = 120.0) -> Send:
    """Return a sender that requests a loop of this many turns over HTTP."""
    tensor = {"name": "n", "shape": [1], "datatype": "INT64", "data": [turns]}
    headers = {"x-request-timeout-ms": str(math.ceil(1e3 * timeout_s))}
    return over_http(f"/v2/models/{LOOP}/infer", json.dumps({"inputs": [tensor]}).encode(), headers)


def loop_grpc(turns: int, timeout_s: float = 120.0, times: int = 1) -> Send:
    """Return a sender that requests a loop of this many turns over gRPC."""
    request = message(LOOP, "INT64", (1,), "n", int64_contents=[turns])
    return over_grpc(request.SerializeToString(), timeout_s=timeout_s, times=times)


def unread(send: Send) -> Send:
    """Return a sender of the request that pauses the reader of the server's log meanwhile."""

    def send_unread(server: Server) -> str:
        assert server.reader
        server.reader.pause()
        try:
            return send(server)
        finally:
            server.reader.resume()

    return send_unread


def refusals(protocol: str) -> Send:
    """Return a sender of requests that are refused, and logged."""
    wrong = message("sentiment", "FP32", (1,), "nothing", fp32_contents=[1.0]).SerializeToString()
    return in_turn(over_http(SENTIMENT, b"{}"), REFUSALS) if protocol == "HTTP" else over_grpc(wrong, times=REFUSALS)
