"""Everything that load tests know about the task of a model: the only module here that names a task.

A task has inputs with the expected answers, requests over each interface, measures of quality, and its part of a soak.
Requests and answers of the task API are those of Hugging Face, which every target (`targets.py`) takes. A new task is a
class in this module and its place in `TASKS`.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from load_tests.material import load_images, load_sentences, load_translations
from load_tests.wire import (
    Answer,
    Request,
    infer_path,
    json_tensor,
    read_chunks,
    read_events,
    read_labels,
    read_tensors,
    read_translation,
    read_vector,
    refused_grpc,
    refused_http,
    v2_body,
    v2_message,
)
from proto import heed_pb2

MAX_NEW_TOKENS = 40  # of a translation in a soak


class AnswerPair(NamedTuple):
    """An answer and the one that was expected."""

    given: str
    expected: str


class Material(NamedTuple):
    """The inputs of a task."""

    source: str
    inputs: Sequence[Any]
    expected: Sequence[str]  # of each input; empty where nobody has labelled them


class SoakInput(NamedTuple):
    """An input that a soak sends, and the parameters that go with it."""

    given: Any
    parameters: tuple[tuple[str, int], ...] = ()


class ModelTask(ABC):
    """One task; the material is loaded when it is first asked for."""

    name: str
    measures: tuple[str, ...]  # the names of `quality`; the first one stands in short tables
    typed_call: str | None = None  # the method of heed.v1.Heed; None: gRPC requests are of the Open Inference Protocol
    input_name = "text"  # of the tensor in the Open Inference Protocol
    content_type = "application/json"
    graph_input: Literal["tokens", "pixels"] | None = None  # None: the graph alone is one step of a search
    soak_weight = 3  # how often a soak draws a model of this task, relative to models of other tasks
    soak_sends_batches = False  # whether a soak also sends requests of several rows

    @cached_property
    @abstractmethod
    def material(self) -> Material:
        """The inputs with the expected answers."""

    @property
    def inputs(self) -> Sequence[Any]:
        """The inputs of the material."""
        return self.material.inputs

    def body(self, given: Any, parameters: Mapping[str, Any] | None = None) -> bytes:
        """Return the body of a request of the task API."""
        return json.dumps({"inputs": given} | ({"parameters": parameters} if parameters else {})).encode()

    @abstractmethod
    def answer(self, document: Any) -> str:
        """Read the label or the translation out of a response of the task API."""

    def typed_message(self, model: str, given: Any, parameters: Mapping[str, Any]) -> Any:
        """Return the message of the typed call, or of `ModelInfer` for a task without one."""
        return v2_message(model, self.input_name, [given], raw=True, **parameters)

    def typed_answer(self, reply: Any) -> str:
        """Read the label or the translation out of the reply to the typed call."""
        return str(reply.label)

    def quality(self, answers: Sequence[AnswerPair]) -> dict[str, float]:
        """Return the measures of the task over all answers."""
        return {"accuracy": accuracy(answers)}

    def soak_inputs(self, count: int) -> list[SoakInput]:
        """Return what a soak sends: about `count` inputs."""
        return [SoakInput(given) for given in self.inputs[:count]]

    def soak_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` over the task API."""
        body, headers = self.body(sent.given, dict(sent.parameters)), {"content-type": self.content_type}
        return {
            "kind": "task API", "path": f"/models/{model}", "body": body, "headers": headers, "read": read_labels
        }  # fmt: skip

    def soak_typed_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` by the typed call."""
        message = self.typed_message(model, sent.given, dict(sent.parameters))
        if self.typed_call is None:
            return {"kind": "v2 gRPC", "call": "ModelInfer", "message": message, "read": read_tensors}
        return {"kind": "typed", "call": self.typed_call, "message": message, "read": self.read_typed}

    def read_typed(self, reply: Any) -> Answer:
        """Read the reply to the typed call, with its score."""
        return Answer((self.typed_answer(reply),), (reply.score,))

    @abstractmethod
    def bad_requests(self, model: str) -> list[Request]:
        """Return requests with inputs that a model of this task must refuse."""


class TextClassification(ModelTask):
    """Classification of sentences."""

    name = "text-classification"
    measures = ("accuracy",)
    typed_call = "ClassifyText"
    graph_input = "tokens"
    soak_sends_batches = True

    @cached_property
    def material(self) -> Material:
        """Sentences with their labels."""
        sentences = load_sentences()
        return Material(sentences.source, sentences.texts, sentences.labels)

    def answer(self, document: Any) -> str:
        """Return the best label."""
        return str(document[0][0]["label"])

    def typed_message(self, model: str, given: str, parameters: Mapping[str, Any]) -> Any:
        """Return the message of the typed call."""
        return heed_pb2.ClassifyTextRequest(model=model, text=given)

    def soak_inputs(self, count: int) -> list[SoakInput]:
        """Return `count` texts: a few short and long ones, then sentences."""
        sentences = self.inputs
        texts = ["bad", "good " * 40, " ".join(sentences[:6])[:600], "?!", *sentences[:count]][:count]
        return [SoakInput(text) for text in texts]

    def bad_requests(self, model: str) -> list[Request]:
        """Return texts that a server must refuse."""
        cut_short = v2_message(model, "text", ["x"], raw=True)
        cut_short.raw_input_contents[0] = b"\x09\0\0\0x"
        tensors = {
            "wrong type": json_tensor("text", [1.0], "FP32"),
            "wrong shape": json_tensor("text", ["x"], shape=[2]),
            "empty text": json_tensor("text", [""]),
            "too many rows": json_tensor("text", ["x"] * 513),
            "too many tokens": json_tensor("text", ["x " * 2000]),
        }
        return [
            *(refused_http(what, infer_path(model), v2_body(tensor)) for what, tensor in tensors.items()),
            refused_http("negative timeout", infer_path(model), v2_body(json_tensor("text", ["x"]), timeout=-1)),
            refused_grpc("not UTF-8", v2_message(model, "text", [b"\xff"], raw=False)),
            refused_grpc("empty text", v2_message(model, "text", [""], raw=True)),
            refused_grpc("raw contents cut short", cut_short),
        ]


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


class Translation(ModelTask):
    """Translation of English sentences to German, by greedy search unless a soak asks for beams."""

    name = "translation"
    measures = ("bleu", "chrf")
    typed_call = "Translate"
    soak_weight = 1  # a translation takes a decoder step a token

    @cached_property
    def material(self) -> Material:
        """Sentences with their translations."""
        pairs = load_translations()
        return Material(pairs.source, pairs.texts, pairs.references)

    def answer(self, document: Any) -> str:
        """Return the translation."""
        return str(document[0]["translation_text"])

    def typed_message(self, model: str, given: str, parameters: Mapping[str, Any]) -> Any:
        """Return the message of the typed call."""
        return heed_pb2.TranslateRequest(model=model, text=given, **parameters)

    def typed_answer(self, reply: Any) -> str:
        """Return the translation."""
        return str(reply.translation)

    def quality(self, answers: Sequence[AnswerPair]) -> dict[str, float]:
        """Return BLEU and chrF of all answers together (sacreBLEU, cased and detokenised)."""
        import sacrebleu

        given, expected = [answer.given for answer in answers], [[answer.expected for answer in answers]]
        return {
            "bleu": sacrebleu.corpus_bleu(given, expected).score if given else 0.0,
            "chrf": sacrebleu.corpus_chrf(given, expected).score if given else 0.0,
        }

    def soak_inputs(self, count: int) -> list[SoakInput]:
        """Return a quarter of `count` sentences, each by two searches."""
        texts = ["dog", " ".join(self.inputs[:2]), *self.inputs[:count]][: max(2, count // 4)]
        return [
            SoakInput(text, (("num_beams", beams), ("max_new_tokens", MAX_NEW_TOKENS)))
            for text in texts
            for beams in (1, 4)
        ]

    def soak_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` over the task API: half of the greedy ones are streamed."""
        request = super().soak_request(model, sent) | {"read": read_translation}
        parameters = dict(sent.parameters)
        if parameters["num_beams"] > 1 or len(sent.given) % 2:
            return request
        body = json.dumps({"inputs": sent.given, "parameters": parameters, "stream": True}).encode()
        return request | {"kind": "task API stream", "body": body, "read": read_events}

    def soak_typed_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` by a typed call: half of the greedy ones are streamed."""
        request = super().soak_typed_request(model, sent)
        if dict(sent.parameters)["num_beams"] > 1 or len(sent.given) % 2 == 0:
            return request
        return request | {"kind": "typed stream", "call": "TranslateStream", "read": read_chunks}

    def bad_requests(self, model: str) -> list[Request]:
        """Return searches that a server must refuse."""
        text = json_tensor("text", ["x"])
        return [
            refused_http("too many beams", infer_path(model), v2_body(text, num_beams=99)),
            refused_http("unknown language", f"/models/{model}", self.body("x", {"tgt_lang": "fr"})),
            refused_grpc("too many beams", v2_message(model, "text", ["x"], raw=True, num_beams=99)),
        ]


class FeatureExtraction(ModelTask):
    """Embeddings of sentences. Nobody has labelled them: an answer is judged by its length."""

    name = "feature-extraction"
    measures = ("unit_length",)
    graph_input = "tokens"
    soak_sends_batches = True

    @cached_property
    def material(self) -> Material:
        """Sentences."""
        sentences = load_sentences()
        return Material(sentences.source, sentences.texts, [])

    def answer(self, document: Any) -> str:
        """Return the length of the vector."""
        return f"{math.hypot(*document[0]):.3f}"

    def typed_answer(self, reply: Any) -> str:
        """Return the length of the vector."""
        return f"{math.hypot(*read_tensors(reply).numbers):.3f}"

    def quality(self, answers: Sequence[AnswerPair]) -> dict[str, float]:
        """Return the fraction of vectors of length 1."""
        return {"unit_length": sum(answer.given == "1.000" for answer in answers) / max(1, len(answers))}

    def soak_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` over the task API."""
        return super().soak_request(model, sent) | {"read": read_vector}

    def bad_requests(self, model: str) -> list[Request]:
        """Return requests that a server must refuse."""
        return [
            refused_http("empty text", infer_path(model), v2_body(json_tensor("text", [""]))),
            refused_http("unknown prompt", f"/models/{model}", self.body("x", {"prompt_name": "none of these"})),
            refused_grpc("not UTF-8", v2_message(model, "text", [b"\xff"], raw=True)),
        ]


def accuracy(answers: Sequence[AnswerPair]) -> float:
    """Return the fraction of right answers."""
    return sum(answer.given == answer.expected for answer in answers) / max(1, len(answers))


TASKS: dict[str, ModelTask] = {
    task.name: task for task in (TextClassification(), ImageClassification(), Translation(), FeatureExtraction())
}
MEASURES = tuple(dict.fromkeys(measure for task in TASKS.values() for measure in task.measures))
