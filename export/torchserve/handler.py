"""TorchServe's handler of a model: answers requests of the Hugging Face task API, a batch at a time.

    TorchServe's front end ── batch of requests ──> Handler.handle ── service.tasks ──> answers

An archive holds it with the model folder and the modules of the service that it uses (`archive.py`), so that reading,
proving, preprocessing and postprocessing are the code of `python -m service`. TorchServe takes the only class of this
file.

The wire, over HTTP (`POST /predictions/<model>`) and gRPC (`input["data"]`) alike: the body of Heed's `POST
/models/<name>`, JSON or an image file, and its answer. A wrong request gets `{"error": ...}` with status 400 and leaves
the others of its batch alone.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import msgspec
import torch

from export.torchserve.torchscript_engine import TorchScriptEngine
from model_store.folder import TORCHSCRIPT, FolderError, FoundFolder, ModelFolder
from service.engines.host import EngineHost
from service.engines.onnx import Engine
from service.engines.onnx_session import EngineError
from service.errors import InvalidRequest
from service.models.engine_opening import open_onnx
from service.models.loading import Loader
from service.tasks.hub_messages import is_json, read_json
from service.tasks.stored_task import StoredTask
from service.tasks.task import RequestLimits

MODEL_FOLDER = "model"  # within the archive
MAX_IMAGE_PIXELS, MAX_REQUEST_ROWS = 50_000_000, 512  # the service's defaults

# An item of a batch: the model's input, and the function that turns results into the answer.
Prepared = tuple[list[Any], Callable[[list[Any]], Any]]


class Handler:
    """One model in one worker of TorchServe."""

    def initialize(self, context: Any) -> None:
        """Read, check and prove the archive's model folder; a model that fails is not served.

        Raises:
            FolderError: a checksum or a golden example fails.
            EngineError: the graph cannot be loaded.
        """
        properties, settings = context.system_properties, (context.model_yaml_config or {}).get("heed", {})
        gpu = properties.get("gpu_id")
        self._device = "cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}"
        self._runtime = settings.get("runtime", "torchscript")
        self._max_rows = int(settings.get("max_rows", 32))
        threads = int(settings.get("threads", 0)) or len(os.sched_getaffinity(0))
        archive = Path(properties["model_dir"])
        found = FoundFolder(context.model_name, "1", archive / MODEL_FOLDER)
        self._loaded = Loader(self._max_rows, threads, perf_counter, open_engine=self._open_engine).load(found)
        self._task = cast("StoredTask[Any]", self._loaded.task)  # a bare graph is refused by `_open_engine`

    def _open_engine(self, folder: ModelFolder, threads: int, host: EngineHost) -> Engine:
        if folder.manifest is None:
            raise FolderError("a bare ONNX graph has no task; python -m service serves its tensors")
        if self._runtime == "torchscript":
            return TorchScriptEngine(folder.file(TORCHSCRIPT).path, folder.manifest, self._device, threads)
        return open_onnx(folder, threads, host)

    def handle(self, requests: Sequence[dict[str, Any]], context: Any) -> list[Any]:
        """Answer a batch with one document per request, in order."""
        answers: list[Any] = [None] * len(requests)
        accepted: dict[int, Prepared] = {}
        for number, request in enumerate(requests):
            try:
                accepted[number] = self._prepare(body_of(request))
            except InvalidRequest as error:
                answers[number] = refuse(context, number, 400, str(error))
        together: list[Any] | None = None
        # A failed batch is retried one request at a time, to find the request that causes the failure.
        with contextlib.suppress(EngineError):
            together = self._compute([item for items, _ in accepted.values() for item in items])
        for number, (items, finish) in accepted.items():
            try:
                if together is None:
                    results = self._compute(items)
                else:
                    results, together = together[: len(items)], together[len(items) :]
            except EngineError as error:
                answers[number] = refuse(context, number, 500, f"the model failed on this input: {error}")
                continue
            answers[number] = msgspec.json.encode(finish(results))
            context.set_response_content_type(number, "application/json")
        return answers

    def _compute(self, items: list[Any]) -> list[Any]:
        """Compute results in order; items of similar length share an engine call."""
        results: list[Any] = [None] * len(items)
        order = sorted(range(len(items)), key=lambda number: (items[number].rows, items[number].length))
        while order:
            together = max(1, self._max_rows // items[order[-1]].rows)
            numbers, order = order[:together], order[together:]
            some = [items[number] for number in numbers]
            computed = self._loaded.compute(some)
            for number, result in zip(numbers, computed, strict=True):
                results[number] = result
        return results

    def _prepare(self, body: bytes) -> Prepared:
        task = self._task
        is_file = task.takes_files and not is_json(body)
        call = task.read_hub(body if is_file else read_json(body, task.hub_request))
        if call.stream:
            raise InvalidRequest("stream is not supported by TorchServe: an answer is sent as a whole")
        if call.explain is not None:
            raise InvalidRequest("explain is not supported by TorchServe; python -m service supports it")
        if call.num_beams is not None and call.num_beams > self._max_rows:
            raise InvalidRequest(
                f"num_beams is {call.num_beams}, the limit is {self._max_rows} (max_rows of the archive)"
            )
        limits = RequestLimits(MAX_REQUEST_ROWS, self._max_rows, MAX_IMAGE_PIXELS)
        preparation = task.prepare(call.inputs, call, call.field, limits)
        items = [item for step in preparation.steps for item in step()]

        def finish(results: list[Any]) -> Any:
            found = [task.finish(result, call.answer) for result in results]
            if call.document is not None:
                return call.document(found)
            documents = [task.hub_document(answer) for answer in found]
            return documents if task.answers_lists else documents[0]

        return items, finish


def body_of(request: dict[str, Any]) -> bytes:
    """Return the body of a request: under `body` over HTTP, under `data` over gRPC and in forms.

    TorchServe decodes JSON and text unless TS_DECODE_INPUT_REQUEST=false (as `server.py` sets it): encoded again, it
    passes the same checks as every other body.

    Raises:
        InvalidRequest: the body is under another name.
    """
    given = request.get("body", request.get("data"))
    if given is None:
        raise InvalidRequest(
            "the request has no body; over HTTP, send it with content-type: application/json"
            " (TorchServe splits forms into fields), over gRPC under 'data'"
        )
    if isinstance(given, bytes | bytearray):
        return bytes(given)
    return given.encode() if isinstance(given, str) else msgspec.json.encode(given)


def refuse(context: Any, number: int, status: int, why: str) -> bytes:
    """Write the error answer to a request."""
    context.set_response_status(status, "Bad Request" if status == 400 else "Internal Server Error", number)
    context.set_response_content_type(number, "application/json")
    return msgspec.json.encode({"error": why})
