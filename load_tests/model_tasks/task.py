"""The interface of a task of the load tests: inputs, requests over each interface, measures, its part of a soak."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from load_tests.wire import (
    Answer,
    Request,
    read_labels,
    read_tensors,
    v2_tensors,
)


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

    def tensors(self, rows: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """Return the tensors of a request of the Open Inference Protocol, by name."""
        return {self.input_name: rows}

    @abstractmethod
    def answer(self, document: Any) -> str:
        """Read the label or the translation out of a response of the task API."""

    def typed_message(self, model: str, given: Any, parameters: Mapping[str, Any]) -> Any:
        """Return the message of the typed call, or of `ModelInfer` for a task without one."""
        return v2_tensors(model, self.tensors([given]), raw=True, **parameters)

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


def accuracy(answers: Sequence[AnswerPair]) -> float:
    """Return the fraction of right answers."""
    return sum(answer.given == answer.expected for answer in answers) / max(1, len(answers))
