"""Pooled vectors become embeddings and similarities, without a model."""

import numpy as np
import pytest

from service.errors import InvalidRequest
from service.tasks.hub_messages import read_json
from service.tasks.stored_task import HubCall, TaskError
from service.tasks.task import AnswerOptions
from service.tasks.text.embeddings import EmbeddingRequest, EmbeddingSettings, FeatureExtraction, unit_vectors
from tests.service.tasks.text.test_encoding import make_task

VECTORS = [np.array([3.0, 4.0, 0.0], np.float32), np.array([0.0, 0.0, 2.0], np.float32)]


def embedder(**settings: object) -> FeatureExtraction:
    """Make a task whose vectors have three elements."""
    return FeatureExtraction(
        make_task().encoder.tokenizer.to_str(),
        max_tokens=8,
        pad_id=0,
        graph_inputs=["input_ids", "attention_mask"],
        settings=EmbeddingSettings(dimensions=3, **settings),  # type: ignore[arg-type]
    )


def read(task: FeatureExtraction, body: bytes) -> HubCall:
    """Read a request of the task API."""
    return task.read_hub(read_json(body, EmbeddingRequest))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (AnswerOptions(), [0.6, 0.8, 0.0]),
        (AnswerOptions(normalize=False), [3.0, 4.0, 0.0]),
        (AnswerOptions(dimensions=1), [1.0]),
        (AnswerOptions(dimensions=2, normalize=False), [3.0, 4.0]),
    ],
)
def test_a_vector_is_cut_and_then_scaled(options: AnswerOptions, expected: list[float]) -> None:
    """As Matryoshka embeddings are used; the pooled vector stays as it is."""
    task = embedder()
    np.testing.assert_allclose(task.finish(VECTORS[0], options), expected, rtol=1e-6)
    np.testing.assert_array_equal(VECTORS[0], [3, 4, 0])


def test_the_settings_say_whether_vectors_are_scaled() -> None:
    """A request may ask for the other."""
    task = embedder(normalize=False)
    np.testing.assert_allclose(task.to_tensors(VECTORS)["embedding"], np.stack(VECTORS))
    np.testing.assert_allclose(task.finish(VECTORS[1], AnswerOptions(normalize=True)), [0, 0, 1])


def test_a_vector_of_zeros_stays() -> None:
    """It has no direction, and is no error of the client."""
    np.testing.assert_array_equal(unit_vectors(np.zeros((1, 3), np.float32)), [[0, 0, 0]])


def test_prompts_are_put_before_texts() -> None:
    """By name, or the default one."""
    task = embedder(prompts={"query": "q: ", "none": ""}, default_prompt="query")
    assert read(task, b'{"inputs": ["a", "b"]}').inputs == ["q: a", "q: b"]
    assert read(task, b'{"inputs": "a", "prompt_name": "none"}').inputs == ["a"]
    assert read(task, b'{"inputs": "a", "parameters": {"prompt_name": "none"}}').inputs == ["a"]
    with pytest.raises(InvalidRequest, match="prompt_name 'passage' is not known; the model has 'query', 'none'"):
        read(task, b'{"inputs": "a", "prompt_name": "passage"}')
    with pytest.raises(InvalidRequest, match="the model has none"):
        read(embedder(), b'{"inputs": "a", "prompt_name": "query"}')


def test_the_parameters_stand_in_either_place() -> None:
    """huggingface_hub sends them beside the inputs."""
    task = embedder()
    for body in (
        b'{"inputs": "a", "normalize": false, "dimensions": 2, "truncate": true}',
        b'{"inputs": "a", "parameters": {"normalize": false, "dimensions": 2, "truncation": true}}',
    ):
        call = read(task, body)
        assert call.answer == AnswerOptions(normalize=False, dimensions=2)
        assert call.truncate
    with pytest.raises(InvalidRequest, match="dimensions is 4; the model's vectors have 3 elements"):
        read(task, b'{"inputs": "a", "dimensions": 4}')


@pytest.mark.parametrize(("similarity", "expected"), [("cosine", [1.0, 0.0]), ("dot", [25.0, 0.0])])
def test_sentences_are_compared_with_the_first(similarity: str, expected: list[float]) -> None:
    """All vectors of a request make one document."""
    call = read(
        embedder(similarity=similarity),
        b'{"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}, "normalize": false}',
    )
    assert call.inputs == ["a", "b", "c"]
    assert call.document is not None
    assert call.document([VECTORS[0], VECTORS[0], VECTORS[1]]) == pytest.approx(expected)
    with pytest.raises(InvalidRequest, match=r"inputs\.sentences is empty"):
        read(embedder(), b'{"inputs": {"source_sentence": "a", "sentences": []}}')


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"default_prompt": "query"}, "default_prompt 'query' is not in prompts"),
        ({"similarity": "euclidean"}, "similarity 'euclidean' is not offered; cosine and dot are"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], why: str) -> None:
    """Before the model is served."""
    with pytest.raises(TaskError, match=why):
        embedder(**settings)


class Golden:
    """A golden example, and the tolerance of its manifest."""

    max_abs_logit_difference, labels_must_agree = 1e-3, True

    def __init__(self, vector: list[float]) -> None:
        self.inputs: dict[str, str] = {"text": "good"}
        self.tensors: dict[str, list[int] | str] = {"input_ids": [1, 4, 2]}
        self.outputs = {"embedding": vector}


def test_golden_vectors_are_compared_by_direction() -> None:
    """The largest difference of an element counts, after both are scaled to length 1."""
    task, golden = embedder(), Golden([6.0, 8.0, 0.0])
    task.check_example(golden)
    assert task.golden_difference(golden, VECTORS[0], golden) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(TaskError, match="vectors differ by 1, the manifest allows"):
        task.golden_difference(golden, VECTORS[1], golden)
    with pytest.raises(TaskError, match="vectors differ by nan"):
        task.golden_difference(golden, np.full(3, np.nan, np.float32), golden)
    with pytest.raises(TaskError, match="a vector of 2 elements, but dimensions is 3"):
        task.check_example(Golden([1.0, 2.0]))


def test_a_similarity_is_explained_by_the_words_of_both_texts() -> None:
    """Two texts are two rows of one item; without a part of them the value is the cosine of what is left."""
    task = embedder()
    body = b'{"inputs": {"source_sentence": "good film", "sentences": ["bad film"]}, "parameters": {"explain": {}}}'
    call = read(task, body)
    (item,) = task.preprocess_all(call.inputs, truncate=False, field=call.field)
    plain = task.preprocess("good", truncate=False, field="text")
    assert item.rows == 2
    assert task.collate([item, plain])["input_ids"].shape[0] == 3
    both, single = task.split_batch({"embedding": np.stack([*VECTORS, VECTORS[0]])}, [item, plain])
    assert (both.shape, single.shape) == ((2, 3), (3,))
    assert task.hub_document(task.finish(both)) == pytest.approx(0)
    parts = task.parts(call.inputs[0], item, truncate=False, field="text", max_image_pixels=1, memory=None)
    words = [parts.text[slice(*span)] for span in parts.spans if span is not None]
    assert words == ["good", "film", "bad", "film"]
    function = task.value_function(item, both, None)
    part = function.item_of(parts.ids[:3])
    assert [row.ids for row in part.parts] == [item.parts[0].ids[:3], [task.pad_id]]
    assert function.values_of(np.stack([VECTORS[0], 2 * VECTORS[0]])) == pytest.approx([1])


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (b'"good"', "an explanation needs two texts"),
        (b'{"source_sentence": "good", "sentences": ["a", "b"]}', "takes one sentence, inputs.sentences has 2"),
    ],
)
def test_only_the_similarity_of_two_texts_is_explained(inputs: bytes, text: str) -> None:
    """A vector has no score to explain."""
    with pytest.raises(InvalidRequest, match=text):
        read(embedder(), b'{"inputs": %s, "parameters": {"explain": {}}}' % inputs)
