"""Every route refuses JSON that would take long to decode before it is decoded; large responses go out in slices."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from service.errors import InvalidRequest, TooLarge
from service.transport.http.json_bounds import MAX_JSON_BYTES, check_json, read_bounded_json
from service.transport.tensor_codec import JSON_SLICE_ELEMENTS, encode_json
from tests.conftest import Server, running_server, write_onnx


class Anything(msgspec.Struct):
    """A document with any content."""

    data: Any


def document(fragment: bytes, number: int) -> bytes:
    """Build a document that repeats a fragment."""
    return b'{"data": [' + b",".join([fragment] * number) + b"]}"


COSTLY = {
    "empty lists": (document(b"[]", 40_000), "the JSON has more than 32768 lists and objects; data may be flat"),
    "empty objects": (document(b"{}", 40_000), "the JSON has more than 32768 lists and objects; data may be flat"),
    "nesting": (b'{"data":' + b"[" * 40_000 + b"]" * 40_000 + b"}", "the JSON has more than 32768 lists and objects"),
    "integers": (document(b"1", 200_002), "the JSON has more than 200000 values; send large tensors as binary data"),
    "texts": (document(b'""', 200_002), "the JSON has more than 200000 values; send large tensors as binary data"),
    "keys": (
        b'{"data": {' + b",".join(b'"%d":1' % number for number in range(70_000)) + b"}}",
        "the JSON has more than 65536 keys",
    ),
    "huge integers": (document(b"7" * 4300, 100), "the JSON has more than 100 times 40 digits in a row"),
    "long numbers": (document(b"0." + b"0" * 320 + b"7", 100), "the JSON has more than 100 times 40 digits in a row"),
    "slow numbers": (
        document(b"1.2345678901234567890e-300", 1_100),
        "the JSON has more than 1000 numbers of 19 digits or more with an exponent",
    ),
    "escapes": (b'{"data": "' + b"\\n" * 530_000 + b'"}', "the JSON has more than 524288 escaped characters"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_json_that_is_slow_to_decode_is_refused(name: str) -> None:
    """Each expensive kind of content has its own limit, which is checked before decoding."""
    body, expected = COSTLY[name]
    assert len(body) < MAX_JSON_BYTES
    with pytest.raises(InvalidRequest) as raised:
        read_bounded_json(body, Anything)
    assert str(raised.value).startswith(expected)


@pytest.mark.parametrize(
    "body",
    [
        document(b"0.12345678901234567", 3 * 224 * 224),  # an image as flat numbers
        document(b"-1.2345678901234567e-05", 100_000),
        document(b"[0.5, 0.25, 1]", 30_000),
        b'{"data": "' + b"A text, with commas: and more. " * 60_000 + b'"}',
        b'{"data": "' + "größer \U0001f600".encode() * 150_000 + b'"}',
    ],
    ids=["image", "exponents", "rows", "prose", "not ascii"],
)
def test_usual_documents_are_accepted(body: bytes) -> None:
    """Numbers as programs write them and texts as people write them are within the limits."""
    check_json(memoryview(body))
    assert msgspec.to_builtins(read_bounded_json(body, Anything))


def test_json_has_a_limit_of_bytes_of_its_own() -> None:
    """It is lower than the limit of a body, which may consist of raw tensors."""
    body = b'{"data": "' + b"x" * MAX_JSON_BYTES + b'"}'
    with pytest.raises(TooLarge, match=f"the JSON has {len(body)} bytes, the limit is {MAX_JSON_BYTES}; send large"):
        check_json(memoryview(body))
    check_json(memoryview(body), max_bytes=2 * MAX_JSON_BYTES)


def test_an_answer_is_encoded_in_slices_that_give_one_document() -> None:
    """The result is the same as that of a single call of the encoder."""
    numbers = np.arange(2 * JSON_SLICE_ELEMENTS + 5, dtype=np.float32).reshape(-1, 1) / 7
    assert msgspec.json.decode(b"".join(encode_json("y", numbers))) == msgspec.json.decode(
        msgspec.json.encode(numbers.ravel().tolist())
    )
    assert b"".join(encode_json("y", np.zeros((0, 3), np.int64))) == b"[]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with a bare model, a model with large outputs for small inputs, and a text classifier."""
    import shutil

    from tests.conftest import ROOT

    store = tmp_path_factory.mktemp("store")
    floats = {"x": (TensorProto.FLOAT, ["rows", 1])}
    write_onnx(
        store / "same/1", [helper.make_node("Identity", ["x"], ["y"])], floats, {"y": (TensorProto.FLOAT, ["rows", 1])}
    )
    times = helper.make_node(
        "Constant", [], ["times"], value=helper.make_tensor("t", TensorProto.INT64, [2], [1, 10**6])
    )
    tile = helper.make_node("Tile", ["x", "times"], ["y"])
    write_onnx(store / "much/1", [times, tile], floats, {"y": (TensorProto.FLOAT, ["rows", "columns"])})
    shutil.copytree(ROOT / "model_store" / "sentiment-small", store / "sentiment")
    with running_server(store) as running:
        yield running


def costly_documents() -> list[tuple[str, str, dict[str, str], bytes, str]]:
    """Return an expensive document for each route that reads JSON: name, path, headers, body, error."""
    lists, keys = COSTLY["empty lists"][0][9:-1], COSTLY["keys"][0][9:-1]
    tensor = b'{"inputs": [{"name": "x", "shape": [40000], "datatype": "FP32", "data": ' + lists + b"}]}"
    inputs = b",".join(b'{"name":"%d","shape":[0],"datatype":"FP32","data":[]}' % number for number in range(8_000))
    many_lists, many_keys = COSTLY["empty lists"][1], COSTLY["keys"][1]
    header = {"inference-header-content-length": str(len(tensor))}
    return [
        ("infer", "/v2/models/same/infer", {}, tensor, many_lists),
        ("binary", "/v2/models/same/infer", header, tensor + bytes(4), many_lists),
        ("explain", "/v2/models/sentiment/explain", {}, tensor, many_lists),
        ("inputs", "/v2/models/same/infer", {}, b'{"inputs": [' + inputs + b"]}", "the request has 8000 inputs"),
        ("parameters", "/v2/models/same/infer", {}, b'{"inputs": [], "parameters": ' + keys + b"}", many_keys),
        ("task", "/models/sentiment", {}, b'{"inputs": ' + lists + b"}", many_lists),
        ("options", "/models/sentiment", {}, b'{"inputs": "x", "options": ' + keys + b"}", many_keys),
    ]


@pytest.mark.parametrize("document", costly_documents(), ids=lambda document: document[0])
def test_every_route_refuses_costly_json(document: tuple[str, str, dict[str, str], bytes, str], server: Server) -> None:
    """The error names the limit that the document exceeds."""
    _, path, headers, body, expected = document
    response = httpx.post(f"{server.http}{path}", content=body, headers=headers, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"].startswith(expected)


def test_options_may_hold_anything(server: Server) -> None:
    """The options of the hub's own service are ignored, and nothing of them is kept."""
    options = {f"key {number}": [number] for number in range(500)}
    response = httpx.post(f"{server.http}/models/sentiment", json={"inputs": "fine", "options": options}, timeout=60)
    assert response.status_code == 200


def test_large_answers_come_as_json_within_the_memory_budget(server: Server) -> None:
    """A million numbers are returned; a response that exceeds the budget is refused."""

    def ask(rows: int) -> httpx.Response:
        tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [0.5] * rows}
        return httpx.post(f"{server.http}/v2/models/much/infer", json={"inputs": [tensor]}, timeout=60)

    (output,) = json.loads(ask(1).content)["outputs"]
    assert output["shape"] == [1, 10**6]
    assert output["data"] == [0.5] * 10**6
    refused = ask(8)
    assert refused.status_code == 413
    assert refused.json()["error"].endswith(" bytes of request memory are needed, the limit is 134217728")
