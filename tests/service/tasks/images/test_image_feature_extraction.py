"""Vectors of images become answers and tensors, without a model."""

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from service.errors import InvalidRequest
from service.tasks.hub_messages import read_json
from service.tasks.images.image_feature_extraction import (
    ImageEmbeddingRequest,
    ImageEmbeddingSettings,
    ImageFeatureExtraction,
)
from service.tasks.stored_task import TaskError
from service.tasks.task import AnswerOptions
from tests.service.tasks.images.test_image_classification import CONFIG, file_of, picture

VECTOR = np.array([3.0, 4.0, 0.0, 12.0], dtype=np.float32)


def task(*, normalize: bool = False) -> ImageFeatureExtraction:
    """A task whose vectors have four elements."""
    settings = ImageEmbeddingSettings(dimensions=4, normalize=normalize)
    return ImageFeatureExtraction(CONFIG, settings=settings, graph_input="pixel_values")


class Example(msgspec.Struct):
    """A golden example."""

    inputs: dict[str, str]
    tensors: dict[str, list[int] | str]
    outputs: dict[str, list[float]]


class Tolerance(msgspec.Struct):
    """What the manifest allows."""

    max_abs_logit_difference: float = 1e-3
    labels_must_agree: bool = True


def answer(body: Any) -> Sequence[float]:
    """Answer a JSON request whose image gets `VECTOR`."""
    call = task().read_hub(read_json(msgspec.json.encode(body), ImageEmbeddingRequest))
    (given,) = call.inputs
    assert task().preprocess(given, field=call.field).pixels_CHW.shape == (3, 32, 32)
    document: list[float] = task().hub_document(task().finish(VECTOR, call.answer))
    return document


def test_an_image_gets_its_vector_as_transformers_gives_it() -> None:
    """A vector is scaled to length 1 only where the request or the model says so, and cut before it is scaled."""
    image = base64.b64encode(file_of(picture())).decode()
    assert answer({"inputs": image}) == VECTOR.tolist()
    assert answer({"inputs": image, "parameters": {"normalize": False, "pool": True}}) == VECTOR.tolist()
    assert answer({"inputs": image, "parameters": {"normalize": True}}) == pytest.approx((VECTOR / 13).tolist())
    assert answer({"inputs": image, "parameters": {"normalize": True, "dimensions": 2}}) == pytest.approx([0.6, 0.8])
    call = task().read_hub(b"a file")
    assert (call.inputs, call.field) == ([b"a file"], "the body")
    np.testing.assert_allclose(task(normalize=True).finish(VECTOR, AnswerOptions()), VECTOR / 13)


def test_the_output_tensor_has_a_row_for_each_image() -> None:
    """The metadata and the tensor agree."""
    (output,) = task().outputs
    assert (output.name, output.datatype, output.shape) == ("embedding", "FP32", (-1, 4))
    tensors = task().to_tensors([VECTOR, 2 * VECTOR])
    np.testing.assert_array_equal(tensors["embedding"], [VECTOR, 2 * VECTOR])
    split = task().split_batch({"embedding": tensors["embedding"]}, [None, None])
    np.testing.assert_array_equal(split[1], 2 * VECTOR)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"dimensions": 5}, "dimensions is 5; the model's vectors have 4 elements"),
        ({"dimensions": 1.5}, "'dimensions' must be an integer"),
        ({"pool": False}, "parameter 'pool' is false; only the vector of the whole image is offered"),
        ({"top_k": 1}, "unknown field `top_k`"),
    ],
)
def test_other_parameters_are_refused(parameters: dict[str, Any], text: str) -> None:
    """Each refusal names the parameter."""
    with pytest.raises(InvalidRequest, match=text):
        answer({"inputs": base64.b64encode(file_of(picture())).decode(), "parameters": parameters})


def test_golden_vectors_are_compared_by_direction() -> None:
    """A vector of another direction or width is refused."""
    example = Example({}, {}, {"embedding": VECTOR.tolist()})
    task().check_example(example)
    assert task().golden_difference(example, 2 * VECTOR, Tolerance()) == pytest.approx(0, abs=1e-6)
    with pytest.raises(TaskError, match="vectors differ by 0.2"):
        task().golden_difference(example, np.array([0, 5, 0, 12], dtype=np.float32), Tolerance())
    with pytest.raises(TaskError, match=r"a vector of shape \(3,\), not \(4,\)"):
        task().golden_difference(example, VECTOR[:3], Tolerance())
    with pytest.raises(TaskError, match="a vector of 2 elements, but dimensions is 4"):
        task().check_example(Example({}, {}, {"embedding": [1.0, 2.0]}))
