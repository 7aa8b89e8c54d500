"""OpenAI's embeddings API: its forms of requests, answers and errors, and how little work an answer takes."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.tasks.embedding import unit_vectors
from service.transport.float_json import json_of_rows
from service.transport.http.compatible.openai import embeddings_json
from tests.conftest import Server
from tests.text_models import DIMENSIONS, mean_of_ids, tokenizer_json

TOKENIZER = Tokenizer.from_str(tokenizer_json())
TEXTS = ["a red dog sleeps", "a blue bird", "green cat"]
PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def client(text_server: Server) -> Iterator[httpx.Client]:
    """Open connections to the server."""
    with httpx.Client(base_url=text_server.http) as opened:
        yield opened


def vectors_of(document: dict[str, Any]) -> NDArray[np.float32]:
    """Return the vectors of an answer, from numbers or from base64."""
    assert [each["index"] for each in document["data"]] == list(range(len(document["data"])))
    vectors = [each["embedding"] for each in document["data"]]
    if isinstance(vectors[0], str):
        return np.stack([np.frombuffer(base64.b64decode(vector), dtype="<f4") for vector in vectors])
    return np.array(vectors, dtype=np.float32)


def test_texts_and_ids_have_vectors_in_both_formats(client: httpx.Client) -> None:
    """Numbers and base64 are the same float32; ids stand for texts; tokens are counted, with special ones."""
    encoded = [TOKENIZER.encode(text).ids for text in TEXTS]
    expected = unit_vectors(np.stack([mean_of_ids(ids, DIMENSIONS) for ids in encoded]))
    answers = [
        client.post(PATH, json={"model": "embedder", "input": given, **options}).json()
        for given in (TEXTS, encoded)
        for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"})
    ]
    for answer in answers:
        assert (answer["object"], answer["model"]) == ("list", "embedder")
        assert {each["object"] for each in answer["data"]} == {"embedding"}
        num_tokens = sum(map(len, encoded))
        assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-6)
    for given, ids in ((TEXTS[0], encoded[0]), (encoded[1], encoded[1])):
        alone = client.post(PATH, json={"model": "embedder", "input": given}).json()
        np.testing.assert_allclose(vectors_of(alone), unit_vectors(mean_of_ids(ids, DIMENSIONS)[None]), atol=1e-6)


def test_options(client: httpx.Client) -> None:
    """Vectors are cut and scaled again, and this server's own options are taken; a user changes nothing."""
    plain = mean_of_ids(TOKENIZER.encode("query: dog").ids, DIMENSIONS)
    body = {"input": "dog", "dimensions": 5, "user": "somebody", "prompt_name": "query"}
    np.testing.assert_allclose(
        vectors_of(client.post(PATH, json=body).json()), unit_vectors(plain[None, :5]), atol=1e-6
    )
    raw = client.post(PATH, json=body | {"normalize": False}).json()
    np.testing.assert_allclose(vectors_of(raw), plain[None, :5], atol=1e-6)
    cut = client.post(PATH, json={"input": "dog " * 40, "truncate": True})
    assert (cut.status_code, cut.headers["x-heed-truncated"]) == (200, "true")
    assert cut.json()["usage"]["prompt_tokens"] == 16


def test_models(client: httpx.Client) -> None:
    """The models that embed texts are listed, and described one by one."""
    listed = client.get("/v1/models").json()
    (model,) = listed["data"]
    assert (listed["object"], model["object"], model["id"], model["owned_by"]) == ("list", "model", "embedder", "heed")
    assert client.get("/v1/models/embedder").json() == model
    response = client.get("/v1/models/mood")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "no model 'mood' embeds texts; these do: embedder"


@pytest.mark.parametrize(
    ("body", "status", "kind", "code", "text"),
    [
        ({"input": "dog", "model": "none"}, 404, "invalid_request_error", "model_not_found", "'none' is not in the"),
        ({"input": "dog", "model": "mood"}, 501, "server_error", None, "of which the store has: embedder"),
        ({"input": "dog " * 40}, 400, "invalid_request_error", None, "input has 42 tokens"),
        ({"input": ["dog", ""]}, 400, "invalid_request_error", None, "input[1] is empty"),
        ({"input": [[4], [4, 99]]}, 400, "invalid_request_error", None, "input[1] has the id 99"),
        ({"input": []}, 400, "invalid_request_error", None, "the request has no inputs"),
        ({"inputs": "dog"}, 400, "invalid_request_error", None, "unknown field `inputs`"),
        ({"input": "dog", "dimensions": 13}, 400, "invalid_request_error", None, "dimensions is 13"),
        ({"input": "dog", "encoding_format": "int8"}, 400, "invalid_request_error", None, "$.encoding_format"),
    ],
)
def test_errors(client: httpx.Client, body: Any, status: int, kind: str, code: str | None, text: str) -> None:
    """An error has OpenAI's form."""
    response = client.post(PATH, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == (kind, code)
    assert text in error["message"]


def test_a_model_is_named_where_there_are_several(two_embedders: Server) -> None:
    """Without a name, the only model answers; two must be told apart."""
    with httpx.Client(base_url=two_embedders.http) as client:
        assert client.post(PATH, json={"input": "dog", "model": "second"}).json()["model"] == "second"
        response = client.post(PATH, json={"input": "dog"})
        assert response.status_code == 400
        assert "model is missing: name one of first, second in the body" in response.json()["error"]["message"]


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of functions, built-in ones included, that some work makes."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_the_work_of_an_answer_does_not_grow_with_the_width_of_vectors() -> None:
    """Python makes a few calls for a row, and none for a number: 32 rows of 384 numbers cost as many as of 12."""
    wide = np.random.default_rng(9).standard_normal((32, 384)).astype(np.float32)
    for write in (
        json_of_rows,
        lambda array: embeddings_json(array, "m", 1, is_base64=False),
        lambda array: embeddings_json(array, "m", 1, is_base64=True),
    ):
        assert calls_of(lambda write=write: write(wide)) == calls_of(lambda write=write: write(wide[:, :12])) < 200


@pytest.mark.parametrize("is_base64", [False, True])
def test_an_answer_is_json(is_base64: bool) -> None:
    """The document is valid for any name of a model and any number of rows, and keeps each float32."""
    array = np.random.default_rng(10).standard_normal((3, 7)).astype(np.float32)
    for rows in (array, array[:1], array.T):
        document = json.loads(embeddings_json(rows, 'a "name"', 5, is_base64=is_base64))
        assert document["model"] == 'a "name"'
        assert np.array_equal(vectors_of(document), rows)
