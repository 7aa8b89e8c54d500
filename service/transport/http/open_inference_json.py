"""Decode and encode bodies of the Open Inference Protocol over REST, with the binary tensor extension.

    JSON header (Inference-Header-Content-Length bytes) | binary data of the first tensor | of the second | ...

Without this HTTP header the whole body is JSON. With the value 0 the whole body is the data of the model's only input.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import msgspec

from service.errors import InvalidRequest
from service.prediction.messages import Explanation, Receipt
from service.tensors import DATATYPE_OF_NUMPY, NUMPY_OF, Arrays, TensorSpec, bytes_array, whole_number
from service.transport.http.json_bounds import read_bounded_json
from service.transport.request_metadata import number_of
from service.transport.tensor_codec import decode_json, decode_raw, encode_json, encode_raw
from service.transport.unoffered import ALL_OUTPUTS, RequestedOutputs, check_tensor_parameters, requested_outputs

MAX_TENSORS = 1024  # inputs of one request; requested outputs have the same limit
BINARY_HEADER = "inference-header-content-length"
NO_OUTPUTS = b'"outputs":[]'  # in an encoded `InferResponse`


class InferInput(msgspec.Struct):
    """An input tensor; its data is JSON or lies in the binary part of the body (parameter `binary_data_size`)."""

    name: str
    shape: list[int | float]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferRequestedOutput(msgspec.Struct):
    """A requested output; parameter `binary_data` selects the binary form, `classification` the best classes."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The JSON part of an inference request; clients may send null for every field but `inputs`."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[InferRequestedOutput] | None = None


class InferOutput(msgspec.Struct, omit_defaults=True):
    """An output tensor; its data is JSON or lies in the binary part of the body (parameter `binary_data_size`)."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None  # never set, because `write_infer` adds it in pieces; here for the OpenAPI document


class InferResponse(msgspec.Struct, omit_defaults=True):
    """The JSON part of an inference response; `parameters` contains the receipt."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    parameters: dict[str, Any] = {}
    id: str = ""


class ExplainedFeature(msgspec.Struct):
    """A word of a text: `start` and `end` are character offsets; `weight` is what the word adds to the score."""

    text: str
    start: int
    end: int
    weight: float


class ExplainedPatches(msgspec.Struct):
    """Weights of an image's patches, row by row from the top left."""

    rows: int
    columns: int
    weights: list[list[float]]


class ExplainedToken(msgspec.Struct):
    """A token of a text as the model reads it; for a special token, `text` is its name, `start` and `end` are 0.

    `feature` is the index of the word that the token belongs to.
    """

    text: str
    start: int
    end: int
    weight: float
    feature: int | None


class ExplainedAttention(msgspec.Struct):
    """Attention weights, one row per attending token; null if there are too many numbers.

    `layers` and `heads` count the model's layers and heads; `layer` and `head` are the requested ones, from 0.
    """

    part: str
    layers: int
    heads: int
    layer: int | None
    head: int | None
    weights: list[list[float]] | None


class ExplainFidelity(msgspec.Struct):
    """Quality and cost of an explanation; `completeness_gap` is null except for `shap` and `gradients`."""

    deletion_area: float
    insertion_area: float
    completeness_gap: float | None
    evaluations: int
    seed: int
    seconds: float


class ExplainResponse(msgspec.Struct, omit_defaults=True):
    """An explanation: of a text `features`, of a translation also `target_tokens`, of an image `patches` and `overlay`.

    `influence` has a row per feature and a column per token of the translation; `overlay` is a PNG in base64. The
    methods `attention` and `gradients` also give weights of a text's `tokens`; only the first one gives `attention`.
    """

    model_name: str
    model_version: str
    id: str
    method: str
    target: str
    score: float
    fidelity: ExplainFidelity
    receipt: dict[str, Any]
    features: list[ExplainedFeature] | None = None
    target_tokens: list[str] | None = None
    influence: list[list[float]] | None = None
    patches: ExplainedPatches | None = None
    overlay: bytes | None = None
    tokens: list[ExplainedToken] | None = None
    attention: ExplainedAttention | None = None


@dataclass(frozen=True, slots=True)
class InferMessage:
    """A decoded inference request.

    Attributes:
        id: the client's id of the request; empty if it gave none.
        parameters: the request's parameters, unchecked.
        arrays: input tensors by name.
        outputs: the requested outputs.
        binary_outputs: whether a requested output is binary data, for those that say so.
    """

    id: str
    parameters: Mapping[str, object]
    arrays: Arrays
    outputs: RequestedOutputs
    binary_outputs: Mapping[str, bool]


def header_length(given: str | None, body_bytes: int) -> int | None:
    """Return the length of a body's JSON part in bytes; None if the HTTP header is absent and all of it is JSON.

    Args:
        given: the value of header `BINARY_HEADER`.
        body_bytes: the size of the body.

    Raises:
        InvalidRequest: the value is not a whole number, or greater than the body.
    """
    if given is None:
        return None
    length = number_of(given)
    if length is None or length > body_bytes:
        raise InvalidRequest(f"header {BINARY_HEADER} is {given[:40]!r}, the body has {body_bytes} bytes")
    return length


def read_infer(body: bytes, header_bytes: int | None, specs: Sequence[TensorSpec] | None) -> InferMessage:
    """Decode the body of an inference request.

    Args:
        body: the whole body.
        header_bytes: result of `header_length`.
        specs: the model's inputs; needed only if `header_bytes` is 0.

    Raises:
        TooLarge: the JSON part has too many bytes.
        InvalidRequest: the body is malformed, or exceeds a limit.
    """
    if header_bytes == 0:
        assert specs is not None
        return InferMessage("", {}, _read_lone_tensor(body, specs), ALL_OUTPUTS, {})
    json_bytes = len(body) if header_bytes is None else header_bytes
    request = read_bounded_json(memoryview(body)[:json_bytes], InferRequest)
    asked = request.outputs or []
    for what, entries in (("inputs", request.inputs), ("outputs", asked)):
        if len(entries) > MAX_TENSORS:
            raise InvalidRequest(f"the request has {len(entries)} {what}, the limit is {MAX_TENSORS}")
    binary = memoryview(body)[json_bytes:]
    arrays: Arrays = {}
    position = 0
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise InvalidRequest(f"tensor {tensor.name!r} is given twice")
        shape = _shape_of(tensor)
        given_size = None
        if tensor.parameters:
            check_tensor_parameters("input", tensor.name, tensor.parameters)
            given_size = tensor.parameters.get("binary_data_size")
        if given_size is None:
            if tensor.data is None:
                raise InvalidRequest(f"tensor {tensor.name!r} has neither data nor binary_data_size")
            arrays[tensor.name] = decode_json(tensor.name, tensor.datatype, shape, tensor.data)
            continue
        if tensor.data is not None:
            raise InvalidRequest(f"tensor {tensor.name!r} has data beside binary_data_size; use one of them")
        size = whole_number(given_size)
        if size is None or not 0 <= size <= len(binary) - position:
            raise InvalidRequest(
                f"tensor {tensor.name!r}: binary_data_size is {given_size!r}, {len(binary) - position} bytes are left"
            )
        part = binary[position : position + size]
        arrays[tensor.name] = decode_raw(tensor.name, tensor.datatype, shape, part)
        position += size
    if position != len(binary):
        raise InvalidRequest(f"the body has {len(binary) - position} bytes of binary data that belong to no input")
    outputs = ALL_OUTPUTS
    if asked:
        outputs = requested_outputs([(output.name, output.parameters or {}) for output in asked])
    return InferMessage(request.id or "", request.parameters or {}, arrays, outputs, _binary_outputs(asked))


def _shape_of(tensor: InferInput) -> Sequence[int]:
    """Return a tensor's shape, whose sizes may be written as floats (2.0)."""
    if float not in map(type, tensor.shape):
        return cast("list[int]", tensor.shape)
    shape = [whole_number(size) for size in tensor.shape]
    if None in shape:
        raise InvalidRequest(f"tensor {tensor.name!r}: shape {tensor.shape} has sizes that are no integers")
    return cast("list[int]", shape)


def _binary_outputs(outputs: Sequence[InferRequestedOutput]) -> dict[str, bool]:
    """Read which of the requested outputs say whether they are binary data."""
    binary_outputs = {}
    for output in outputs:
        if output.parameters and (binary_data := output.parameters.get("binary_data")) is not None:
            if not isinstance(binary_data, bool):
                raise InvalidRequest(f"output {output.name!r}: binary_data must be true or false, not {binary_data!r}")
            binary_outputs[output.name] = binary_data
    return binary_outputs


def _read_lone_tensor(body: bytes, specs: Sequence[TensorSpec]) -> Arrays:
    """Decode a body that is the data of the model's only input; its shape follows from the number of bytes."""
    if len(specs) != 1:
        raise InvalidRequest(f"{BINARY_HEADER} 0 is for models with one input; this one has {len(specs)}")
    (spec,) = specs
    if spec.datatype == "BYTES":
        return {spec.name: bytes_array([body])}
    fixed_bytes = NUMPY_OF[spec.datatype].itemsize * math.prod(size for size in spec.shape if size != -1)
    if spec.shape.count(-1) > 1 or fixed_bytes == 0 or len(body) % fixed_bytes:
        raise InvalidRequest(f"{len(body)} bytes do not determine the shape of input {spec.name!r} {list(spec.shape)}")
    shape = [len(body) // fixed_bytes if size == -1 else size for size in spec.shape]
    return {spec.name: decode_raw(spec.name, spec.datatype, shape, body)}


def write_infer(
    model: str,
    receipt: Receipt,
    message: InferMessage,
    outputs: Arrays,
    *,
    all_binary: bool,
) -> tuple[list[bytes], int | None]:
    """Encode the body of an inference response.

    Args:
        model: the model's name.
        receipt: becomes the response's parameters.
        message: the request; its id is returned, and its requested outputs choose between JSON and binary data.
        outputs: output tensors by name.
        all_binary: whether outputs are binary data unless the request says otherwise.

    Returns:
        the pieces of the body, and the length of its JSON part in bytes (None if all of it is JSON).

    Raises:
        InvalidRequest: an output has values that JSON cannot represent, and binary data was not requested.
    """
    response = InferResponse(model, receipt.model_version, [], dict(receipt.as_parameters()), message.id)
    # The split is safe: within a string, the quotation marks would be escaped by backslashes.
    before, after = msgspec.json.encode(response).split(NO_OUTPUTS)
    pieces, blobs, separator = [before, NO_OUTPUTS[:-1]], list[bytes](), b""
    for name, array in outputs.items():
        tensor, data = InferOutput(name, list(array.shape), DATATYPE_OF_NUMPY[array.dtype]), list[bytes]()
        if message.binary_outputs.get(name, all_binary):
            blobs.append(encode_raw(array))
            tensor.parameters = {"binary_data_size": len(blobs[-1])}
        else:
            data = [b',"data":', *encode_json(name, array)]
        pieces += [separator, msgspec.json.encode(tensor)[:-1], *data, b"}"]
        separator = b","
    pieces += [b"]", after]
    return [*pieces, *blobs], sum(map(len, pieces)) if blobs else None


def explain_response(model: str, request_id: str, explanation: Explanation, receipt: Receipt) -> ExplainResponse:
    """Build the response document of an explanation.

    Args:
        model: the model's name.
        request_id: returned as the document's id.
        explanation: weights, by the method that was asked for.
        receipt: timings of the request.
    """
    response = ExplainResponse(
        model,
        receipt.model_version,
        request_id,
        explanation.method,
        explanation.target,
        explanation.score,
        ExplainFidelity(**asdict(explanation.fidelity)),
        receipt.as_dict(),
        target_tokens=None if explanation.target_tokens is None else list(explanation.target_tokens),
        influence=explanation.influence,
        overlay=explanation.overlay,
        tokens=None if explanation.tokens is None else [ExplainedToken(*token) for token in explanation.tokens],
        attention=None if explanation.attention is None else ExplainedAttention(*explanation.attention),
    )
    if explanation.patches is None:
        weighed = zip(explanation.words, explanation.weights, strict=True)
        response.features = [ExplainedFeature(*word, weight) for word, weight in weighed]
    else:
        weights_RC = explanation.patches
        response.patches = ExplainedPatches(len(weights_RC), len(weights_RC[0]), weights_RC)
    return response
