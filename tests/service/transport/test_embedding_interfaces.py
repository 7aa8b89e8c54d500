"""Vectors over the Open Inference Protocol and the task API: options of a request, over HTTP and gRPC."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from proto import inference_pb2, inference_pb2_grpc
from service.tasks.embedding import unit_vectors
from tests.conftest import Server
from tests.text_models import DIMENSIONS, mean_of_ids, tokenizer_json

PLAIN = mean_of_ids(Tokenizer.from_str(tokenizer_json()).encode("query: dog").ids, DIMENSIONS)
EXPECTED = [
    ({"prompt_name": "query"}, unit_vectors(PLAIN[None])),
    ({"prompt_name": "query", "normalize": False}, PLAIN[None]),
    ({"prompt_name": "query", "dimensions": 5}, unit_vectors(PLAIN[None, :5])),
]
REFUSED = [
    ("embedder", {"dimensions": 13}, "dimensions is 13; the model's vectors have 12 elements"),
    ("embedder", {"prompt_name": "none"}, "prompt_name 'none' is not known; the model has 'query', 'passage'"),
    ("embedder", {"normalize": "yes"}, "parameter 'normalize' must be true or false, not 'yes'"),
    ("mood", {"normalize": True}, "parameter 'normalize' belongs to feature-extraction; model 'mood' is"),
]


@pytest.fixture(scope="module")
def client(text_server: Server) -> Iterator[httpx.Client]:
    """Open HTTP connections to the server."""
    with httpx.Client(base_url=text_server.http) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(text_server: Server) -> Iterator[Any]:
    """Open a gRPC channel to the server."""
    with grpc.insecure_channel(text_server.grpc) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer_over_http(client: httpx.Client, model: str, parameters: dict[str, object]) -> httpx.Response:
    """Send one text with parameters of the request."""
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["dog"]}
    return client.post(f"/v2/models/{model}/infer", json={"inputs": [text], "parameters": parameters})


def request_of(model: str, parameters: dict[str, Any]) -> inference_pb2.ModelInferRequest:
    """Make the same request for gRPC."""
    request = inference_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"dog")
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


@pytest.mark.parametrize(("parameters", "expected"), EXPECTED)
def test_options_shape_the_vectors(
    client: httpx.Client, stub: Any, parameters: dict[str, object], expected: np.ndarray[Any, Any]
) -> None:
    """A prompt, the length and the number of elements are as the request says, in every API."""
    (output,) = infer_over_http(client, "embedder", parameters).json()["outputs"]
    assert output["shape"] == list(expected.shape)
    np.testing.assert_allclose(output["data"], expected[0], atol=1e-6)
    (typed,) = stub.ModelInfer(request_of("embedder", parameters)).outputs
    np.testing.assert_allclose(typed.contents.fp32_contents, expected[0], atol=1e-6)
    answer = client.post("/models/embedder", json={"inputs": ["dog"], "parameters": parameters}).json()
    np.testing.assert_allclose(answer, expected, atol=1e-6)


@pytest.mark.parametrize(("model", "parameters", "text"), REFUSED)
def test_wrong_options_are_refused(
    client: httpx.Client, stub: Any, model: str, parameters: dict[str, object], text: str
) -> None:
    """The sentence names the option, and what the model has."""
    response = infer_over_http(client, model, parameters)
    assert response.status_code == 400
    assert text in response.json()["error"]
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request_of(model, parameters))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in raised.value.details()


def test_the_task_api_compares_sentences(client: httpx.Client) -> None:
    """Similarities are numbers, and vectors of many texts come in their order."""
    asked = {"inputs": {"source_sentence": "dog", "sentences": ["dog", "cat"]}}
    same, other = client.post("/models/embedder", json=asked).json()
    assert same == pytest.approx(1, abs=1e-6)
    assert other < same
    texts = ["dog", "cat"] * 16
    vectors = np.array(client.post("/models/embedder", json={"inputs": texts}).json())
    assert vectors.shape == (32, DIMENSIONS)
    np.testing.assert_allclose(vectors, np.tile(vectors[:2], (16, 1)), atol=1e-6)
