"""The runtimes that can be loaded, and how each is asked over HTTP and gRPC: the same requests, the same answers.

heed         python -m service             /models/<model>,      heed.v1.Heed
torchserve   python -m export.torchserve   /predictions/<model>, org.pytorch.serve.grpc.inference
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import grpc

from load_tests.model_tasks import ModelTask
from proto import heed_pb2, heed_pb2_grpc, torchserve_pb2, torchserve_pb2_grpc

TIMEOUT_S = 30.0


class Reply(NamedTuple):
    """What a call gave: the label or the translation, and the rows of its batch where the target tells."""

    answer: str
    batch_rows: int | None


class Refused(Exception):
    """The target answered with an error; the message is the target's."""


Ask = Callable[[Any], Reply]


class Target(Protocol):
    """A runtime."""

    def path(self, model: str) -> str:
        """Where a model takes requests over HTTP."""

    def batch_rows(self, headers: Mapping[str, str]) -> int | None:
        """The rows of an answer's batch, by the headers of the response."""

    def open_grpc(self, channel: grpc.Channel, model: str, task: ModelTask) -> Ask:
        """A call for one input; it raises `Refused`."""


class Heed:
    """`python -m service`: the Hugging Face task API, and typed gRPC calls."""

    def path(self, model: str) -> str:
        """As `Target.path`."""
        return f"/models/{model}"

    def batch_rows(self, headers: Mapping[str, str]) -> int | None:
        """From the receipt."""
        return int(headers["x-heed-batch-size"])

    def open_grpc(self, channel: grpc.Channel, model: str, task: ModelTask) -> Ask:
        """As `Target.open_grpc`."""
        stub = heed_pb2_grpc.HeedStub(channel)
        calls: dict[str, Callable[[Any], Any]] = {
            "text-classification": lambda text: stub.ClassifyText(
                heed_pb2.ClassifyTextRequest(model=model, text=text), timeout=TIMEOUT_S
            ),
            "image-classification": lambda image: stub.ClassifyImage(
                heed_pb2.ClassifyImageRequest(model=model, image=image), timeout=TIMEOUT_S
            ),
            "translation": lambda text: stub.Translate(
                heed_pb2.TranslateRequest(model=model, text=text), timeout=TIMEOUT_S
            ),
        }
        call, field = calls[task.name], "translation" if task.name == "translation" else "label"

        def ask(given: Any) -> Reply:
            try:
                reply = call(given)
            except grpc.RpcError as error:
                raise Refused(f"{error.code().name}: {error.details()}") from error
            return Reply(getattr(reply, field), reply.receipt.batch_size)

        return ask


class TorchServe:
    """`python -m export.torchserve`: both faces carry the body and the answer of the Hugging Face task API."""

    def path(self, model: str) -> str:
        """As `Target.path`."""
        return f"/predictions/{model}"

    def batch_rows(self, headers: Mapping[str, str]) -> int | None:
        """It does not tell."""
        return None

    def open_grpc(self, channel: grpc.Channel, model: str, task: ModelTask) -> Ask:
        """As `Target.open_grpc`."""
        stub = torchserve_pb2_grpc.InferenceAPIsServiceStub(channel)

        def ask(given: Any) -> Reply:
            request = torchserve_pb2.PredictionsRequest(model_name=model, input={"data": task.body(given)})
            try:
                document = json.loads(stub.Predictions(request, timeout=TIMEOUT_S).prediction)
            except grpc.RpcError as error:
                raise Refused(f"{error.code().name}: {error.details()}") from error
            # Its gRPC face knows no status of a handler's: a refused request is a call that succeeds.
            if isinstance(document, dict) and "error" in document:
                raise Refused(document["error"])
            return Reply(task.answer(document), None)

        return ask


TARGETS: dict[str, type[Target]] = {"heed": Heed, "torchserve": TorchServe}
