"""The API of Text Embeddings Inference: its forms of requests, answers, statuses and errors."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from service.tasks.embedding import unit_vectors
from tests.conftest import Server
from tests.text_models import DIMENSIONS, VOCABULARY, mean_of_ids, tokenizer_json

TOKENIZER = Tokenizer.from_str(tokenizer_json())
TEXTS = ["a red dog sleeps", "a blue bird", "green cat"]


@pytest.fixture(scope="module")
def client(text_server: Server) -> Iterator[httpx.Client]:
    """Open connections to the server."""
    with httpx.Client(base_url=text_server.http) as opened:
        yield opened


def answer_of(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """Return the answer to a request, which must succeed."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def expected_vector(text: str) -> np.ndarray[Any, Any]:
    """Compute the vector of a text without the server."""
    return mean_of_ids(TOKENIZER.encode(text).ids, DIMENSIONS)


@pytest.mark.parametrize("path", ["/embed", "/models/embedder/embed"])
def test_embed(client: httpx.Client, path: str) -> None:
    """Texts become vectors of length 1 in order, at the root and under the model's path; one text has a list too."""
    found = np.array(answer_of(client, path, {"inputs": TEXTS}), dtype=np.float32)
    expected = unit_vectors(np.stack([expected_vector(text) for text in TEXTS]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    alone = answer_of(client, path, {"inputs": TEXTS[0]})
    assert np.allclose(alone, found[:1], atol=1e-6)


def test_options_of_embed(client: httpx.Client) -> None:
    """Vectors are left as they are, cut to their beginning, and computed behind a prompt."""
    plain = expected_vector(TEXTS[0])
    raw = answer_of(client, "/embed", {"inputs": TEXTS[0], "normalize": False})
    np.testing.assert_allclose(raw, [plain], atol=1e-6)
    short = answer_of(client, "/embed", {"inputs": TEXTS[0], "dimensions": 4})
    np.testing.assert_allclose(short, unit_vectors(plain[None, :4]), atol=1e-6)
    prompted = answer_of(client, "/embed", {"inputs": TEXTS[0], "prompt_name": "query", "normalize": False})
    np.testing.assert_allclose(prompted, [expected_vector("query: " + TEXTS[0])], atol=1e-6)
    cut = answer_of(client, "/embed", {"inputs": "dog " * 40, "truncate": True, "truncation_direction": "Right"})
    assert len(cut[0]) == DIMENSIONS


def test_ids_stand_for_texts(client: httpx.Client) -> None:
    """A list of integers is one text, a list of lists several, and texts may stand beside ids."""
    ids = [TOKENIZER.encode(text).ids for text in TEXTS]
    by_text = answer_of(client, "/embed", {"inputs": TEXTS})
    assert np.allclose(answer_of(client, "/embed", {"inputs": ids}), by_text, atol=1e-6)
    assert np.allclose(answer_of(client, "/embed", {"inputs": ids[1]}), by_text[1:2], atol=1e-6)
    mixed = answer_of(client, "/embed", {"inputs": [TEXTS[0], ids[1], TEXTS[2]]})
    assert np.allclose(mixed, by_text, atol=1e-6)


def test_similarity(client: httpx.Client) -> None:
    """The cosine of a sentence with each of the others; with itself it is 1."""
    asked = {"inputs": {"source_sentence": TEXTS[0], "sentences": [TEXTS[0], *TEXTS[1:]]}}
    units = unit_vectors(np.stack([expected_vector(text) for text in TEXTS]))
    np.testing.assert_allclose(answer_of(client, "/similarity", asked), units @ units[0], atol=1e-6)
    with_prompt = answer_of(client, "/similarity", asked | {"parameters": {"prompt_name": "passage"}})
    assert with_prompt[0] == pytest.approx(1, abs=1e-6)


def test_predict(client: httpx.Client) -> None:
    """A text or a pair has a list of classes, best first; a list of lists has one such list each."""
    body = {"model": "mood", "inputs": TEXTS[0]}
    logits = mean_of_ids(TOKENIZER.encode(TEXTS[0]).ids, 3)
    raw = answer_of(client, "/predict", body | {"raw_scores": True})
    assert [each["score"] for each in raw] == pytest.approx(sorted(logits.tolist(), reverse=True), abs=1e-6)
    scores = answer_of(client, "/predict", body)
    assert [each["label"] for each in scores] == [each["label"] for each in raw]
    assert sum(each["score"] for each in scores) == pytest.approx(1)
    pair = answer_of(client, "/models/mood/predict", {"inputs": TEXTS[:2]})
    assert len(pair) == 3
    several = answer_of(client, "/models/mood/predict", {"inputs": [[TEXTS[0]], TEXTS[:2]]})
    assert [each[0]["label"] for each in several] == [scores[0]["label"], pair[0]["label"]]
    alone = answer_of(client, "/models/mood/predict", {"inputs": [TEXTS[0]]})
    assert [each["label"] for each in alone] == [each["label"] for each in scores]


def test_rerank(client: httpx.Client) -> None:
    """Texts come by their scores with the query, best first, as numbers of the model or between 0 and 1."""
    body = {"query": "a dog", "texts": TEXTS}
    logits = [mean_of_ids(TOKENIZER.encode("a dog", text).ids, 1).item() for text in TEXTS]
    order = sorted(range(3), key=lambda number: -logits[number])
    raw = answer_of(client, "/rerank", body | {"raw_scores": True, "return_text": True})
    assert [(each["index"], each["text"]) for each in raw] == [(number, TEXTS[number]) for number in order]
    assert [each["score"] for each in raw] == pytest.approx([logits[number] for number in order], abs=1e-6)
    scores = answer_of(client, "/models/ranker/rerank", body)
    assert [sorted(each) for each in scores] == [["index", "score"]] * 3
    sigmoids = [1 / (1 + np.exp(-logits[number])) for number in order]
    assert [each["score"] for each in scores] == pytest.approx(sigmoids, abs=1e-6)


def test_tokenize_and_decode(client: httpx.Client) -> None:
    """Tokens have their characters, special ones have none; ids become texts again."""
    ((*_, last), second) = answer_of(client, "/models/embedder/tokenize", {"inputs": ["a dog", "cat"]})
    assert last == {"id": VOCABULARY["[SEP]"], "text": "[SEP]", "special": True, "start": None, "stop": None}
    assert second[1] == {"id": VOCABULARY["cat"], "text": "cat", "special": False, "start": 0, "stop": 3}
    body = {"inputs": "dog", "add_special_tokens": False, "prompt_name": "query"}
    (tokens,) = answer_of(client, "/models/embedder/tokenize", body)
    assert [token["text"] for token in tokens] == ["query", ":", "dog"]
    ids = TOKENIZER.encode("a dog").ids
    assert answer_of(client, "/models/mood/decode", {"ids": ids}) == ["a dog"]
    whole = answer_of(client, "/models/mood/decode", {"ids": [ids, [5]], "skip_special_tokens": False})
    assert whole == ["[CLS] a dog [SEP]", "query"]


def test_info_and_health(client: httpx.Client) -> None:
    """Each model has its limits and its kind; the server is healthy without a body."""
    kinds = {
        "embedder": {"embedding": {"pooling": "part of the graph"}},
        "ranker": {"reranker": {"id2label": {"0": "relevant"}, "label2id": {"relevant": 0}}},
        "mood": {
            "classifier": {
                "id2label": {"0": "bad", "1": "mixed", "2": "good"},
                "label2id": {"bad": 0, "mixed": 1, "good": 2},
            }
        },
    }
    for name, kind in kinds.items():
        info = client.get(f"/models/{name}/info").json()
        assert (info["model_id"], info["model_type"], info["max_input_length"]) == (name, kind, 16)
        assert (info["max_client_batch_size"], info["model_dtype"]) == (64, "float32")
    response = client.get("/health")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "body", "status", "error_type", "text"),
    [
        ("/embed", {"inputs": ["dog"] * 65}, 413, "Validation", "the request has 65 inputs, the limit is 64"),
        ("/embed", {"inputs": []}, 413, "Validation", "the request has no inputs"),
        ("/embed", {"inputs": "dog " * 40}, 413, "Validation", "inputs has 42 tokens, the model takes at most 16"),
        ("/embed", {"inputs": ["dog", ""]}, 413, "Validation", "inputs[1] is empty"),
        ("/embed", {"inputs": "dog", "dimensions": 13}, 413, "Validation", "dimensions is 13; the model's vectors"),
        ("/embed", {"inputs": "dog", "prompt_name": "x"}, 413, "Validation", "prompt_name 'x' is not known"),
        ("/embed", {"inputs": [4, 99]}, 413, "Validation", "inputs has the id 99, the tokenizer has 0 to 16"),
        ("/embed", {"inputs": [4] * 17}, 413, "Validation", "inputs has 17 tokens, the model takes at most 16"),
        ("/embed", {"inputs": [[4], []]}, 413, "Validation", "inputs[1] is empty"),
        ("/embed", {"inputs": [4, "dog"]}, 413, "Validation", "inputs[1] does not go with inputs[0]"),
        ("/embed", {"inputs": [4], "prompt_name": "query"}, 413, "Validation", "prompt_name is 'query', but an input"),
        ("/embed", {"inputs": 1}, 422, "Validation", "Expected `str | array`, got `int` - at `$.inputs`"),
        ("/embed", {"input": "dog"}, 422, "Validation", "Object contains unknown field `input`"),
        ("/embed", {"inputs": "dog", "model": "mood"}, 424, "Backend", "model 'mood' is a text-classification model"),
        ("/embed", {"inputs": "dog", "model": "none"}, 404, "Validation", "'none' is not in the store"),
        ("/predict", {"inputs": "dog"}, 413, "Validation", "name one of mood, ranker in the body"),
        ("/models/mood/predict", {"inputs": "dog", "model": "ranker"}, 413, "Validation", "the path names 'mood'"),
        ("/models/mood/predict", {"inputs": TEXTS}, 413, "Validation", "inputs has 3 texts"),
        ("/models/mood/predict", {"inputs": [["dog"], []]}, 413, "Validation", "inputs[1] has 0 texts"),
        ("/models/mood/rerank", {"query": "a", "texts": TEXTS}, 424, "Backend", "text-classification with 1 label"),
        ("/rerank", {"query": "", "texts": TEXTS}, 413, "Validation", "the first text of texts[0] is empty"),
        ("/rerank", {"query": "a", "texts": []}, 413, "Validation", "the request has no inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 413, "Validation", "is empty"),
        ("/models/mood/tokenize", {"inputs": "a", "prompt_name": "query"}, 413, "Validation", "has no prompts"),
        ("/models/mood/tokenize", {"inputs": "a" * 600}, 413, "Validation", "inputs has 600 characters"),
        ("/models/mood/decode", {"ids": [99]}, 413, "Validation", "ids has the id 99"),
        ("/embed_all", {"inputs": "a"}, 424, "Backend", "the vectors of all tokens are not offered"),
        ("/models/embedder/embed_sparse", {"inputs": "a"}, 424, "Backend", "sparse vectors are not offered"),
    ],
)
def test_errors(client: httpx.Client, path: str, body: Any, status: int, error_type: str, text: str) -> None:
    """A wrong request has the status and the type of that server, and a sentence that names what is wrong."""
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.json()["error_type"] == error_type
    assert text in response.json()["error"]


def test_the_side_of_truncation_is_the_tokenizers(client: httpx.Client) -> None:
    """The other side is refused where texts are cut, and changes nothing where they are not."""
    body = {"inputs": "dog", "truncation_direction": "left"}
    assert np.allclose(answer_of(client, "/embed", body), answer_of(client, "/embed", {"inputs": "dog"}), atol=1e-6)
    response = client.post("/embed", json=body | {"truncate": True})
    assert response.status_code == 413
    assert response.json()["error"] == "truncation_direction is 'left'; the model's tokenizer cuts on the right"


def test_failures_are_counted_for_the_model(client: httpx.Client, text_server: Server) -> None:
    """A request to the root counts for the model that it found."""
    before = client.get("/metrics").text
    client.post("/embed", json={"inputs": ""})
    name = 'heed_requests_total{model="embedder",outcome="invalid",protocol="http",version="1"}'

    def count(exposition: str) -> float:
        return next((float(line.split()[1]) for line in exposition.splitlines() if line.startswith(name)), 0.0)

    assert count(client.get("/metrics").text) == count(before) + 1


def test_the_models_own_settings_hold(two_embedders: Server) -> None:
    """Without a prompt's name the model's default prompt is used; products instead of cosines, where it says so."""
    with httpx.Client(base_url=two_embedders.http + "/models/second") as client:
        raw = answer_of(client, "/embed", {"inputs": "dog", "normalize": False})
        np.testing.assert_allclose(raw, [expected_vector("passage: dog")], atol=1e-6)
        by_ids = answer_of(client, "/embed", {"inputs": TOKENIZER.encode("dog").ids, "normalize": False})
        np.testing.assert_allclose(by_ids, [expected_vector("dog")], atol=1e-6)
        asked = {"inputs": {"source_sentence": "dog", "sentences": ["dog"]}}
        # The vectors of this API have length 1 unless a request says otherwise; a similarity takes the model's own.
        product = answer_of(client, "/similarity", asked)
        assert product == pytest.approx([float(expected_vector("passage: dog") @ expected_vector("passage: dog"))])
