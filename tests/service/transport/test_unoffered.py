"""What strangers' clients send over the Open Inference Protocol: what is offered, taken, and refused by name."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from proto import inference_pb2, inference_pb2_grpc
from service.tensors import NUMPY_OF
from service.transport.unoffered import requested_outputs
from tests.conftest import Server

TEXTS = ["A wonderful film.", "dull"]
FLOATS = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 3, 2, 9, 8, 7]}


@pytest.fixture(scope="module")
def oip(server: Server) -> Iterator[inference_pb2_grpc.GRPCInferenceServiceStub]:
    """Open the Open Inference Protocol over gRPC."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def set_parameters(target: Any, parameters: dict[str, Any]) -> None:
    """Write parameters into a message; None becomes a parameter without a value."""
    fields = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        if value is None:
            target[name].CopyFrom(inference_pb2.InferParameter())
        else:
            setattr(target[name], fields[type(value)], value)


def message_of(model: str, body: dict[str, Any]) -> inference_pb2.ModelInferRequest:
    """Make the gRPC request with the content of a JSON body."""
    request = inference_pb2.ModelInferRequest(model_name=model)
    set_parameters(request.parameters, body.get("parameters") or {})
    for tensor in body["inputs"]:
        written = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        set_parameters(written.parameters, tensor.get("parameters") or {})
        if tensor["datatype"] == "BYTES":
            written.contents.bytes_contents.extend(element.encode() for element in tensor["data"])
        else:
            written.contents.fp32_contents.extend(tensor["data"])
    for output in body.get("outputs") or []:
        set_parameters(request.outputs.add(name=output["name"]).parameters, output.get("parameters") or {})
    return request


def texts(shape: list[int] | None = None, **parameters: Any) -> dict[str, Any]:
    """Make the input of two texts."""
    tensor = {"name": "text", "shape": shape or [len(TEXTS)], "datatype": "BYTES", "data": TEXTS}
    return tensor | ({"parameters": parameters} if parameters else {})


def wanting(name: str, **parameters: Any) -> dict[str, Any]:
    """Make a requested output."""
    return {"name": name, "parameters": parameters}


def test_the_best_classes_of_an_output(oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client) -> None:
    """Labels are those of the model; other outputs of numbers have none; both protocols agree."""
    plain = http.post("/v2/models/sentiment/infer", json={"inputs": [texts()]}).raise_for_status().json()
    (_, positive), (negative, _) = np.array(plain["outputs"][2]["data"]).reshape(2, 2)
    best_of_floats = [["6.000000:1", "4.000000:2", "2.000000:0"], ["18.000000:0", "16.000000:1", "14.000000:2"]]
    for model, tensor, output, count, expected in (
        ("sentiment", texts(), "probabilities", 1, [[f"{positive:f}:1:POSITIVE"], [f"{negative:f}:0:NEGATIVE"]]),
        ("double", FLOATS, "y", 2, [row[:2] for row in best_of_floats]),
        ("double", FLOATS, "y", 2.0, [row[:2] for row in best_of_floats]),
        ("double", FLOATS, "y", 99, best_of_floats),
    ):
        body = {"inputs": [tensor], "outputs": [wanting(output, classification=count)]}
        (answer,) = http.post(f"/v2/models/{model}/infer", json=body).raise_for_status().json()["outputs"]
        (returned,) = oip.ModelInfer(message_of(model, body)).outputs
        flat, shape = [*chain(*expected)], [len(expected), len(expected[0])]
        assert (answer["name"], answer["datatype"], answer["shape"], answer["data"]) == (output, "BYTES", shape, flat)
        assert (returned.name, returned.datatype, [*returned.shape]) == (output, "BYTES", shape)
        assert [each.decode() for each in returned.contents.bytes_contents] == flat
    names = ("label", "score", "probabilities")  # a label and its score are the best of the probabilities
    body = {"inputs": [texts()], "outputs": [wanting(name, classification=2) for name in names]}
    answers = http.post("/v2/models/sentiment/infer", json=body).raise_for_status().json()["outputs"]
    assert [answer["name"] for answer in answers] == [*names]
    assert [answer["shape"] for answer in answers] == [[2, 2]] * 3
    assert answers[0]["data"] == answers[1]["data"] == answers[2]["data"]
    body = {"inputs": [texts()], "outputs": [wanting("score", classification=1), wanting("label")]}
    scores, labels = http.post("/v2/models/sentiment/infer", json=body).raise_for_status().json()["outputs"]
    assert (scores["shape"], labels["data"]) == ([2, 1], ["POSITIVE", "NEGATIVE"])
    assert [written.split(":")[2] for written in scores["data"]] == labels["data"]
    body = {"inputs": [texts()], "outputs": [wanting("copy", classification=1)]}
    body["inputs"][0] |= {"name": "text"}
    refused = http.post("/v2/models/same/infer", json=body)
    assert refused.status_code == 400
    assert "output 'copy': classification is for numbers, the output is BYTES" in refused.json()["error"]
    assert "classification" in oip.ServerMetadata(inference_pb2.ServerMetadataRequest()).extensions


def test_many_classes_are_ranked_in_a_thread(http: httpx.Client) -> None:
    """A long output gives what a short one gives, from the largest value on."""
    rows = 16
    values = np.random.default_rng(2).permutation(rows * 600).reshape(rows, 600)
    numbers, truths = (values % 100).ravel().tolist(), (values % 2 == 0).ravel().tolist()
    tensors = [
        {"name": name, "datatype": name, "shape": [rows, 600], "data": truths if name == "BOOL" else numbers}
        for name in NUMPY_OF
    ]
    body = {"inputs": tensors, "outputs": [wanting("INT16_copy", classification=5)]}
    (answer,) = http.post("/v2/models/all-types/infer", json=body).raise_for_status().json()["outputs"]
    order = np.argsort(-(values % 100), axis=1, kind="stable")[:, :5]
    assert answer["shape"] == [rows, 5]
    assert answer["data"] == [f"{values[row, index] % 100}:{index}" for row in range(rows) for index in order[row]]


# JSON body, gRPC code, and a part of the error's text.
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no classes": (
        {"outputs": [wanting("score", classification=0)]},
        "INVALID_ARGUMENT",
        "output 'score': classification must be an integer of at least 1, not 0",
    ),
    "half a class": (
        {"outputs": [wanting("score", classification=1.5)]},
        "INVALID_ARGUMENT",
        "must be an integer of at least 1, not 1.5",
    ),
    "classes as text": (
        {"outputs": [wanting("score", classification="2")]},
        "INVALID_ARGUMENT",
        "must be an integer of at least 1, not '2'",
    ),
    "classes as truth value": (
        {"outputs": [wanting("score", classification=True)]},
        "INVALID_ARGUMENT",
        "must be an integer of at least 1, not True",
    ),
    "an output in two forms": (
        {"outputs": [wanting("score"), wanting("score", classification=1)]},
        "INVALID_ARGUMENT",
        "output 'score' is requested twice",
    ),
    "input in shared memory": (
        {"inputs": [texts(shared_memory_region="a", shared_memory_byte_size=9)]},
        "UNIMPLEMENTED",
        "input 'text': shared_memory_region is not offered",
    ),
    "part of a region": (
        {"inputs": [texts(shared_memory_offset=9)]},
        "UNIMPLEMENTED",
        "input 'text': shared_memory_offset is not offered",
    ),
    "output in shared memory": (
        {"outputs": [wanting("score", shared_memory_region="a", shared_memory_byte_size=8)]},
        "UNIMPLEMENTED",
        "output 'score': shared_memory_region is not offered",
    ),
    "base64 in a text": (
        {"inputs": [texts(content_type="base64")]},
        "UNIMPLEMENTED",
        "input 'text': content_type 'base64' is not offered",
    ),
    "sequence by number": (
        {"parameters": {"sequence_id": 7, "sequence_start": True}},
        "UNIMPLEMENTED",
        "parameter 'sequence_id' is not offered",
    ),
    "sequence by name": (
        {"parameters": {"sequence_id": "seven"}},
        "UNIMPLEMENTED",
        "parameter 'sequence_id' is not offered",
    ),
    "start without a sequence": (
        {"parameters": {"sequence_start": True}},
        "UNIMPLEMENTED",
        "parameter 'sequence_start' is not offered",
    ),
    "end without a sequence": (
        {"parameters": {"sequence_id": 0, "sequence_end": True}},
        "UNIMPLEMENTED",
        "parameter 'sequence_end' is not offered",
    ),
    "priority of another type": (
        {"parameters": {"priority": "high"}},
        "INVALID_ARGUMENT",
        "parameter 'priority' must be an integer of at least 0, not 'high'",
    ),
    "sampling": (
        {"parameters": {"do_sample": True}},
        "INVALID_ARGUMENT",
        "parameter 'do_sample' is True; only false is offered",
    ),
    "a parameter of the task API": (
        {"parameters": {"function_to_apply": "none"}},
        "INVALID_ARGUMENT",
        "parameter 'function_to_apply' belongs to the task API",
    ),
    "an explanation in place of an answer": (
        {"parameters": {"explain": True}},
        "INVALID_ARGUMENT",
        "parameter 'explain' belongs to the task API",
    ),
    "beams for a classifier": (
        {"parameters": {"num_beams": 1}},
        "INVALID_ARGUMENT",
        "parameter 'num_beams' belongs to translation; model 'sentiment' is a text-classification model",
    ),
    "half a timeout": ({"parameters": {"timeout": 1.5}}, "INVALID_ARGUMENT", "'timeout' must be a positive integer"),
    "one row of texts": (
        {"inputs": [texts([1, 2])]},
        "INVALID_ARGUMENT",
        "input 'text' has shape [1, 2], the model takes [-1]",
    ),
}
STATUS = {"INVALID_ARGUMENT": 400, "UNIMPLEMENTED": 501}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_offered_is_refused_by_name(
    case: str, oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """It never gets status 200 and another answer."""
    change, code, text = REFUSED[case]
    body = {"inputs": [texts()], **change}
    response = http.post("/v2/models/sentiment/infer", json=body)
    assert response.status_code == STATUS[code]
    assert text in response.json()["error"]
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(message_of("sentiment", body))
    assert raised.value.code().name == code
    assert text in raised.value.details()


def test_truncate_is_refused_where_nothing_is_cut(http: httpx.Client) -> None:
    """A bare graph takes tensors, which are never cut."""
    response = http.post("/v2/models/double/infer", json={"inputs": [FLOATS], "parameters": {"truncate": True}})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error.startswith("parameter 'truncate' belongs to text-classification, ")
    assert error.endswith("; model 'double' is a bare graph, which takes tensors")


def test_an_explanation_takes_no_outputs(http: httpx.Client) -> None:
    """It has one form."""
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["fine"]}
    for more in ({"outputs": [{"name": "label"}]}, {"parameters": {"binary_data_output": True}}):
        response = http.post("/v2/models/sentiment/explain", json={"inputs": [text], **more})
        assert (response.status_code, "neither outputs nor binary_data_output" in response.text) == (400, True)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0}},
        {"parameters": {"sequence_id": "", "priority": 3, "headers": "a", "triton_enable_empty_final_response": False}},
        {"parameters": {"unknown_to_this_server": 7}},
        {"parameters": {"timeout": 10_000_000.0, "do_sample": False}},
        {"parameters": dict.fromkeys(("timeout", "truncate", "num_beams", "sequence_id", "priority", "top_k"))},
        {"inputs": [texts(shared_memory_offset=0, content_type="str")]},
        {"inputs": [texts([2, 1])]},
        {"outputs": [wanting("label", classification=None)]},
        {"outputs": [wanting("label", content_type="np", shared_memory_region=None)]},
    ],
    ids=str,
)
def test_what_is_harmless_is_taken(
    change: dict[str, Any], oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """The answer is the usual one, in shape and content."""
    body = {"inputs": [texts()], **change}
    output = http.post("/v2/models/sentiment/infer", json=body).raise_for_status().json()["outputs"][0]
    assert (output["data"], output["shape"]) == (["POSITIVE", "NEGATIVE"], [2])
    response = oip.ModelInfer(message_of("sentiment", body))
    assert [*response.outputs[0].contents.bytes_contents] == [b"POSITIVE", b"NEGATIVE"]
    assert [*response.outputs[0].shape] == [2]


@pytest.mark.parametrize(
    "change",
    [
        {"id": None, "parameters": None, "outputs": None},
        {"outputs": []},
        {"outputs": [{"name": "label", "parameters": None}]},
        {"outputs": [wanting("label", binary_data=None)], "parameters": {"binary_data_output": None}},
        {"inputs": [texts() | {"parameters": None}]},
        {"inputs": [texts(binary_data_size=None)]},
        {"inputs": [texts() | {"shape": [2.0]}]},
    ],
    ids=str,
)
def test_null_is_the_absence_of_an_optional_field(change: dict[str, Any], http: httpx.Client) -> None:
    """JSON encoders of some languages write every field of a structure, and every number as a float."""
    answer = http.post("/v2/models/sentiment/infer", json={"inputs": [texts()], **change}).raise_for_status().json()
    assert answer["outputs"][0]["data"] == ["POSITIVE", "NEGATIVE"]
    assert "id" not in answer


@pytest.mark.parametrize(
    ("shape", "text"), [("[1]", None), ("[1.0]", None), ("[1.5]", "shape [1.5] has sizes that are no integers")]
)
def test_null_data_beside_binary_data(shape: str, text: str | None, http: httpx.Client) -> None:
    """The size may be a float too."""
    tensor = {"name": "text", "datatype": "BYTES", "data": None, "parameters": {"binary_data_size": 8.0}, "shape": 0}
    document = json.dumps({"inputs": [tensor]}).replace(": 0}", f": {shape}}}").encode()
    headers = {"inference-header-content-length": str(len(document))}
    response = http.post("/v2/models/sentiment/infer", content=document + b"\4\0\0\0fine", headers=headers)
    assert response.status_code == (200 if text is None else 400), response.text
    assert text is None or text in response.json()["error"]


@pytest.mark.parametrize(
    ("datatype", "text"), [("INT64", None), ("UINT8", None), ("INT8", "outside the range of INT8")]
)
def test_integers_may_be_written_as_floats(datatype: str, text: str | None, http: httpx.Client) -> None:
    """Numbers that an integer cannot be are refused as before."""
    data = {name: "[true, false]" if name == "BOOL" else "[1, 2]" for name in NUMPY_OF} | {datatype: "[2.0e2, 1.0]"}
    tensors = [
        f'{{"name": "{name}", "datatype": "{name}", "shape": [1, 2], "data": {data[name]}}}' for name in NUMPY_OF
    ]
    response = http.post("/v2/models/all-types/infer", content=f'{{"inputs": [{", ".join(tensors)}]}}')
    if text is None:
        outputs = {output["name"]: output["data"] for output in response.raise_for_status().json()["outputs"]}
        assert outputs[f"{datatype}_copy"] == [200, 1]
    else:
        assert (response.status_code, text in response.json()["error"]) == (400, True)


def test_an_empty_form_beside_the_one_in_use(oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """Clients of typed languages set an empty `contents`, or an empty list of raw contents."""
    request = inference_pb2.ModelInferRequest(model_name="double", raw_input_contents=[np.ones(3, "<f4").tobytes()])
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    tensor.contents.SetInParent()
    assert tensor.HasField("contents")
    assert np.frombuffer(oip.ModelInfer(request).raw_output_contents[0], "<f4").tolist() == [2, 2, 2]
    tensor.contents.fp32_contents.extend([1, 1, 1])
    with pytest.raises(grpc.RpcError, match="contents field must not be specified when using raw_input_contents for "):
        oip.ModelInfer(request)
    del request.raw_input_contents[:]
    assert [*oip.ModelInfer(request).outputs[0].contents.fp32_contents] == [2, 2, 2]


def test_requested_outputs_without_classes() -> None:
    """Names keep their order, and a name that is given twice counts once."""
    wanted = requested_outputs([("b", {}), ("a", {"binary_data": True}), ("b", {})])
    assert (wanted.names, wanted.num_classes) == (["b", "a"], {})
