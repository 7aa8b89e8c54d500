"""Tasks of text encoders: classification, embeddings, and tasks whose answers nobody has labelled."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from load_tests.material import load_sentences
from load_tests.model_tasks.task import AnswerPair, Material, ModelTask, SoakInput
from load_tests.wire import (
    Answer,
    Request,
    infer_path,
    json_tensor,
    read_best_of,
    read_document,
    read_tensors,
    read_vector,
    refused_grpc,
    refused_http,
    v2_body,
    v2_message,
    v2_tensors,
)
from proto import heed_pb2


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


class SentenceTask(ModelTask):
    """A task that is asked about sentences, beside which it may get a fixed text. Nobody has labelled its answers."""

    measures = ("answered",)
    beside: tuple[str, str] | None = None  # the other tensor's name, and its text in every request
    reader: Callable[[bytes], Answer] = staticmethod(read_document)

    @cached_property
    def material(self) -> Material:
        """Sentences."""
        sentences = load_sentences()
        return Material(sentences.source, sentences.texts, [])

    def tensors(self, rows: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """Return the sentences, and the fixed text for each."""
        return {self.input_name: rows} | ({self.beside[0]: [self.beside[1]] * len(rows)} if self.beside else {})

    def answer(self, document: Any) -> str:
        """Return the answer as it is."""
        return json.dumps(document)

    def typed_answer(self, reply: Any) -> str:
        """Return the texts and numbers of the answer."""
        return json.dumps(read_tensors(reply))

    def quality(self, answers: Sequence[AnswerPair]) -> dict[str, float]:
        """Return the fraction of requests that got an answer."""
        return {"answered": sum(bool(answer.given) for answer in answers) / max(1, len(answers))}

    def soak_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` over the task API."""
        return super().soak_request(model, sent) | {"read": self.reader}

    def bad_requests(self, model: str) -> list[Request]:
        """Return requests that a server must refuse."""
        empty = v2_body(*(json_tensor(name, rows) for name, rows in self.tensors([""]).items()))
        return [
            refused_http("empty text", infer_path(model), empty),
            refused_grpc("not UTF-8", v2_tensors(model, self.tensors([b"\xff"]), raw=True)),
        ]


class TokenClassification(SentenceTask):
    """Entities of sentences."""

    name = "token-classification"


class TextRanking(SentenceTask):
    """The score of a sentence for a fixed query."""

    name = "text-ranking"
    input_name = "text_pair"
    beside = ("text", "Is it any good?")

    def body(self, given: Any, parameters: Mapping[str, Any] | None = None) -> bytes:
        """Return the query with one text."""
        return super().body({"query": "Is it any good?", "texts": [given]}, parameters)


class QuestionAnswering(SentenceTask):
    """The answer that a sentence has to a fixed question."""

    name = "question-answering"
    input_name = "context"
    beside = ("question", "What is it about?")

    def body(self, given: Any, parameters: Mapping[str, Any] | None = None) -> bytes:
        """Return the question with its context."""
        return super().body({"question": "What is it about?", "context": given}, parameters)


class ZeroShotClassification(SentenceTask):
    """Scores of two fixed labels for a sentence."""

    name = "zero-shot-classification"
    beside = ("candidate_labels", "praise, complaint")
    reader = staticmethod(read_best_of)

    def body(self, given: Any, parameters: Mapping[str, Any] | None = None) -> bytes:
        """Return the sentence with its labels."""
        return super().body(given, {"candidate_labels": "praise, complaint"} | dict(parameters or {}))


class FillMask(SentenceTask):
    """What may stand behind a sentence, for models whose mask is BERT's."""

    name = "fill-mask"
    reader = staticmethod(read_best_of)

    @cached_property
    def material(self) -> Material:
        """Sentences with a gap at their end."""
        sentences = load_sentences()
        return Material(sentences.source, [f"{text} [MASK]" for text in sentences.texts], [])
