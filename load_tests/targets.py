"""The runtimes under load, and how each is called over HTTP and gRPC.

heed         python -m service             /models/<model>,      heed.v1.Heed
torchserve   python -m export.torchserve   /predictions/<model>, org.pytorch.serve.grpc.inference
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import grpc

from load_tests.model_tasks import ModelTask
from proto import heed_pb2_grpc, torchserve_pb2, torchserve_pb2_grpc

TIMEOUT_S = 30.0


class Reply(NamedTuple):
    """The result of a call: the label or the translation, and the rows of its batch where the target reports them."""

    answer: str
    batch_rows: int | None


class Refused(Exception):
    """The target answered with an error; the message is the target's."""


Ask = Callable[[Any], Reply]


class Target(Protocol):
    """A runtime under load, and how it is called."""

    def path(self, model: str) -> str:
        """Return the path of a model over HTTP."""

    def batch_rows(self, headers: Mapping[str, str]) -> int | None:
        """Return the rows of an answer's batch from the headers of the response; None where it is unknown."""

    def open_grpc(self, channel: grpc.Channel, model: str, task: ModelTask) -> Ask:
        """Return a call for one input; it raises `Refused`."""


class Heed:
    """`python -m service`: the Hugging Face task API, and typed gRPC calls."""

    def path(self, model: str) -> str:
        """Return the path of a model over HTTP."""
        return f"/models/{model}"

    def batch_rows(self, headers: Mapping[str, str]) -> int | None:
        """Return the rows of the batch from the receipt."""
        return int(headers["x-heed-batch-size"])

    def open_grpc(self, channel: grpc.Channel, model: str, task: ModelTask) -> Ask:
        """Return a call for one input; it raises `Refused`."""
        if task.typed_call is None:
            # Late, because tests of third-party clients have other classes of these names in the process.
            from proto import inference_pb2_grpc

            call = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        else:
            call = getattr(heed_pb2_grpc.HeedStub(channel), task.typed_call)

        def ask(given: Any) -> Reply:
            try:
                reply = call(task.typed_message(model, given, {}), timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                raise Refused(f"{error.code().name}: {error.details()}") from error
            batch = reply.parameters["batch_size"].int64_param if task.typed_call is None else reply.receipt.batch_size
            return Reply(task.typed_answer(reply), batch)

        return ask


class TorchServe:
    """`python -m export.torchserve`: HTTP and gRPC carry the body and the answer of the Hugging Face task API."""

    def path(self, model: str) -> str:
        """Return the path of a model over HTTP."""
        return f"/predictions/{model}"

    def batch_rows(self, headers: Mapping[str, str]) -> int | None:
        """Return None: TorchServe does not report batch sizes."""
        return None

    def open_grpc(self, channel: grpc.Channel, model: str, task: ModelTask) -> Ask:
        """Return a call for one input; it raises `Refused`."""
        stub = torchserve_pb2_grpc.InferenceAPIsServiceStub(channel)

        def ask(given: Any) -> Reply:
            request = torchserve_pb2.PredictionsRequest(model_name=model, input={"data": task.body(given)})
            try:
                document = json.loads(stub.Predictions(request, timeout=TIMEOUT_S).prediction)
            except grpc.RpcError as error:
                raise Refused(f"{error.code().name}: {error.details()}") from error
            # TorchServe's gRPC does not pass on a handler's status: a refused request is a call that succeeds.
            if isinstance(document, dict) and "error" in document:
                raise Refused(document["error"])
            return Reply(task.answer(document), None)

        return ask


TARGETS: dict[str, type[Target]] = {"heed": Heed, "torchserve": TorchServe}
