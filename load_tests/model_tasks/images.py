"""Tasks of images: classification and embeddings."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from load_tests.material import load_images
from load_tests.model_tasks.task import AnswerPair, Material, ModelTask, SoakInput
from load_tests.wire import (
    Request,
    read_tensors,
    read_vector,
    refused_grpc,
    refused_http,
    v2_message,
)
from proto import heed_pb2


class ImageClassification(ModelTask):
    """Classification of image files."""

    name = "image-classification"
    measures = ("accuracy",)
    typed_call = "ClassifyImage"
    input_name = "image"
    content_type = "image/png"
    graph_input = "pixels"

    @cached_property
    def material(self) -> Material:
        """Image files with their labels."""
        images = load_images()
        return Material(images.source, images.files, images.labels)

    def body(self, given: bytes, parameters: Mapping[str, Any] | None = None) -> bytes:
        """Return the file itself."""
        return given

    def answer(self, document: Any) -> str:
        """Return the best label."""
        return str(document[0]["label"])

    def typed_message(self, model: str, given: bytes, parameters: Mapping[str, Any]) -> Any:
        """Return the message of the typed call."""
        return heed_pb2.ClassifyImageRequest(model=model, image=given)

    def bad_requests(self, model: str) -> list[Request]:
        """Return files that a server must refuse."""
        return [
            refused_http("not an image", f"/models/{model}", b"GIF89a nonsense"),
            refused_http("half an image", f"/models/{model}", self.inputs[0][:100]),
            refused_grpc("not an image", v2_message(model, "image", [b"nonsense"], raw=True)),
        ]


class ImageFeatureExtraction(ModelTask):
    """Embeddings of image files. Nobody has labelled them: answers are counted that have a length at all."""

    name = "image-feature-extraction"
    measures = ("positive_length",)
    input_name = "image"
    content_type = "image/png"
    graph_input = "pixels"

    @cached_property
    def material(self) -> Material:
        """Image files."""
        images = load_images()
        return Material(images.source, images.files, [])

    def body(self, given: bytes, parameters: Mapping[str, Any] | None = None) -> bytes:
        """Return the file itself."""
        return given

    def answer(self, document: Any) -> str:
        """Return the length of the vector."""
        return f"{math.hypot(*document):.3f}"

    def typed_answer(self, reply: Any) -> str:
        """Return the length of the vector."""
        return f"{math.hypot(*read_tensors(reply).numbers):.3f}"

    def quality(self, answers: Sequence[AnswerPair]) -> dict[str, float]:
        """Return the fraction of vectors that are not zero."""
        return {"positive_length": sum(answer.given != "0.000" for answer in answers) / max(1, len(answers))}

    def soak_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` over the task API."""
        return super().soak_request(model, sent) | {"read": read_vector}

    def bad_requests(self, model: str) -> list[Request]:
        """Return files that a server must refuse."""
        return [
            refused_http("not an image", f"/models/{model}", b"GIF89a nonsense"),
            refused_grpc("not an image", v2_message(model, "image", [b"nonsense"], raw=True)),
        ]
