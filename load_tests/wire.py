"""Requests with their expected answers, encoded and decoded for each interface."""

import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

FLOAT32_TOLERANCE = 1e-5
HTTP_OF = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 413}


class StreamFailed(Exception):
    """A stream of answers ended with an error in place of the whole; the message is the server's."""


class Answer(NamedTuple):
    """The content of an answer: labels or translations, and numbers."""

    texts: tuple[str, ...]
    numbers: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request and its expected answer.

    `expected` is None where the answer is an error (`error`), or where any answer will do.
    """

    kind: str
    path: str = ""  # over HTTP; empty: over gRPC
    body: bytes | None = None  # None: GET
    headers: Mapping[str, str] = field(default_factory=dict)
    call: str = ""  # over gRPC: the method's name
    message: Any = None
    read: Callable[[Any], Answer] | None = None  # a body, or a message (of a stream: the list of messages)
    expected: Answer | None = None
    tolerance: float = FLOAT32_TOLERANCE
    relative: bool = False  # the tolerance is a fraction of the largest expected number
    depends_on_company: bool = False  # int8: a different text is allowed, with a score within the tolerance
    error: str = ""  # the expected gRPC code, or its HTTP status
    timeout_s: float | None = None  # deadline; it may be too short on purpose
    cancel_after_s: float | None = None  # the client cancels after this time

    @property
    def streams(self) -> bool:
        """Whether the gRPC call answers by a stream."""
        return self.call.endswith("Stream")

    def status(self, got: str) -> bool:
        """Whether an HTTP status or a gRPC code is the expected one."""
        if self.path:
            return got == str(HTTP_OF.get(self.error, 200))
        return got == (self.error or "OK")


# --- reading answers -------------------------------------------------------------------------------------------------


def read_labels(body: bytes) -> Answer:
    """Read the task API's answer to one text or one image: best label and its score."""
    document = json.loads(body)
    best = document[0][0] if isinstance(document[0], list) else document[0]
    return Answer((best["label"],), (best["score"],))


def read_translation(body: bytes) -> Answer:
    """Read the task API's answer to one text."""
    return Answer((json.loads(body)[0]["translation_text"],), ())


def read_document(body: bytes) -> Answer:
    """Read the task API's answer to one text, an object or a list of objects: all texts, and the first score."""
    document = json.loads(body)
    objects = document if isinstance(document, list) else [document]
    texts = [value for each in objects for value in each.values() if isinstance(value, str)]
    return Answer(tuple(texts), tuple(each["score"] for each in objects[:1]))


def read_best_of(body: bytes) -> Answer:
    """Read the task API's list of objects as tensors have it: the first text once more before all of them."""
    answer = read_document(body)
    return Answer((*answer.texts[:1], *answer.texts), answer.numbers)


def read_vector(body: bytes) -> Answer:
    """Read the task API's answer to one text, a list of vectors, or to one image, a vector."""
    document = json.loads(body)
    return Answer((), tuple(document[0] if isinstance(document[0], list) else document))


def read_events(body: bytes) -> Answer:
    """Read the task API's stream: the pieces must make up the whole.

    Raises:
        StreamFailed: the last event is an error.
        ValueError: the pieces are others than the whole.
    """
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
    if "error" in events[-1]:
        raise StreamFailed(events[-1]["error"])
    whole, pieces = events[-1], "".join(event.get("text", "") for event in events[:-1])
    if pieces != whole["translation_text"]:
        raise ValueError(f"the pieces {pieces!r} are not {whole['translation_text']!r}")
    return Answer((whole["translation_text"],), (whole["score"],))


def read_outputs(body: bytes) -> Answer:
    """Read an answer of the Open Inference Protocol over REST: texts and numbers of all outputs."""
    texts: list[str] = []
    numbers: list[float] = []
    for output in json.loads(body)["outputs"]:
        if output["datatype"] == "BYTES":
            texts += output["data"]
        else:
            numbers += output["data"]
    return unpacked(Answer(tuple(texts), tuple(numbers)))


def read_tensors(message: Any) -> Answer:
    """Read an answer of the Open Inference Protocol over gRPC, with raw or typed contents."""
    texts: list[str] = []
    numbers: list[float] = []
    for number, output in enumerate(message.outputs):
        if not message.raw_output_contents:
            texts += [each.decode() for each in output.contents.bytes_contents]
            numbers += [*output.contents.fp32_contents, *output.contents.int64_contents]
        elif output.datatype == "BYTES":
            raw = message.raw_output_contents[number]
            while raw:
                (size,) = struct.unpack_from("<I", raw)
                texts.append(raw[4 : 4 + size].decode())
                raw = raw[4 + size :]
        else:
            dtype = "<i8" if output.datatype == "INT64" else "<f4"
            numbers += np.frombuffer(message.raw_output_contents[number], dtype).tolist()
    return unpacked(Answer(tuple(texts), tuple(numbers)))


def unpacked(answer: Answer) -> Answer:
    """Take apart the texts that are lists of objects in JSON: their texts, and their numbers behind the others."""
    texts: list[str] = []
    numbers = [*answer.numbers]
    for text in answer.texts:
        if text != "[]" and not text.startswith("[{"):
            texts.append(text)
            continue
        for each in json.loads(text):
            texts += [value for value in each.values() if isinstance(value, str)]
            numbers += [value for value in each.values() if not isinstance(value, str)]
    return Answer(tuple(texts), tuple(numbers))


def read_chunks(messages: Sequence[Any]) -> Answer:
    """Read a typed stream: the pieces must make up the whole."""
    whole, pieces = messages[-1].whole, "".join(message.text for message in messages)
    if pieces != whole.translation:
        raise ValueError(f"the pieces {pieces!r} are not {whole.translation!r}")
    return Answer((whole.translation,), (whole.score,))


# --- writing requests ------------------------------------------------------------------------------------------------


def json_tensor(name: str, data: Sequence[Any], datatype: str = "BYTES", shape: Sequence[int] = ()) -> dict[str, Any]:
    """Create an input of the Open Inference Protocol; bytes are encoded by base64."""
    data = [base64.b64encode(each).decode() if isinstance(each, bytes) else each for each in data]
    return {"name": name, "shape": [*(shape or [len(data)])], "datatype": datatype, "data": data}


def infer_path(model: str) -> str:
    """Return the path of the Open Inference Protocol for a model."""
    return f"/v2/models/{model}/infer"


def v2_body(*inputs: dict[str, Any], **parameters: Any) -> bytes:
    """Create a request of the Open Inference Protocol over REST."""
    return json.dumps({"inputs": list(inputs), "parameters": parameters}).encode()


def v2_message(model: str, name: str, rows: Sequence[str | bytes], *, raw: bool, **parameters: int) -> Any:
    """Create a request of the Open Inference Protocol over gRPC, with a BYTES tensor."""
    return v2_tensors(model, {name: rows}, raw=raw, **parameters)


def v2_tensors(model: str, tensors: Mapping[str, Sequence[str | bytes]], *, raw: bool, **parameters: int) -> Any:
    """Create a request of the Open Inference Protocol over gRPC, with BYTES tensors."""
    # Late, because tests of third-party clients have other classes of these names in the process.
    from proto import inference_pb2

    message = inference_pb2.ModelInferRequest(model_name=model)
    for name, rows in tensors.items():
        items = [row.encode() if isinstance(row, str) else row for row in rows]
        tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(items)])
        if raw:
            message.raw_input_contents.append(b"".join(struct.pack("<I", len(item)) + item for item in items))
        else:
            tensor.contents.bytes_contents.extend(items)
    for key, value in parameters.items():
        message.parameters[key].int64_param = value
    return message


def refused_http(what: str, path: str, body: bytes, error: str = "INVALID_ARGUMENT") -> Request:
    """Create a request that must be refused over HTTP."""
    return Request(kind=f"bad: {what}", error=error, path=path, body=body)


def refused_grpc(what: str, message: Any, error: str = "INVALID_ARGUMENT") -> Request:
    """Create a `ModelInfer` call that must be refused."""
    return Request(kind=f"bad: {what}", error=error, call="ModelInfer", message=message)
