"""Bodies of the Open Inference Protocol over REST, with the binary tensor extension.

    JSON header (Inference-Header-Content-Length bytes) | binary data of the first tensor | of the second | ...

Without that HTTP header the whole body is JSON; with the value 0 the whole body is the data of the only input.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from service.errors import InvalidRequest
from service.prediction.messages import Explanation, Receipt
from service.tensors import DATATYPE_OF_NUMPY, NUMPY_OF, Arrays, TensorSpec, bytes_array
from service.transport.http.json_bounds import read_bounded_json
from service.transport.request_metadata import number_of
from service.transport.tensor_codec import decode_json, decode_raw, encode_json, encode_raw

MAX_TENSORS = 1024  # of one request, and as many outputs that it asks for
BINARY_HEADER = "inference-header-content-length"
NO_OUTPUTS = b'"outputs":[]'  # in an encoded `InferResponse`


class InferInput(msgspec.Struct):
    """One input tensor: its data as JSON, or in the binary part of the body (parameter `binary_data_size`)."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class InferRequestedOutput(msgspec.Struct):
    """One wanted output; parameter `binary_data` asks for the binary form."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON part of an inference request."""

    inputs: list[InferInput]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[InferRequestedOutput] = []


class InferOutput(msgspec.Struct, omit_defaults=True):
    """One output tensor; its data as JSON come behind these fields, or are in the binary part of the body."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}


class InferResponse(msgspec.Struct, omit_defaults=True):
    """The JSON part of an inference response; `parameters` are the receipt."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    parameters: dict[str, Any] = {}
    id: str = ""


class ExplainedFeature(msgspec.Struct):
    """A word of a text: `start` and `end` count its characters; `weight` is how much it adds to the score."""

    text: str
    start: int
    end: int
    weight: float


class ExplainedPatches(msgspec.Struct):
    """The patches of an image, row by row from the top left."""

    rows: int
    columns: int
    weights: list[list[float]]


class ExplainedToken(msgspec.Struct):
    """A token of a text as the model reads it; a special one has its name as text and no place.

    `feature` is the number of the word that it belongs to.
    """

    text: str
    start: int
    end: int
    weight: float
    feature: int | None


class ExplainedAttention(msgspec.Struct):
    """The attention that was asked for, a row for each token that looks; null where there are too many numbers.

    `layers` and `heads` are how many there are; `layer` and `head`, from 0, which were asked for.
    """

    part: str
    layers: int
    heads: int
    layer: int | None
    head: int | None
    weights: list[list[float]] | None


class ExplainFidelity(msgspec.Struct):
    """What an explanation is worth, and what it took; `completeness_gap` is null but for `shap` and `gradients`."""

    deletion_area: float
    insertion_area: float
    completeness_gap: float | None
    evaluations: int
    seed: int
    seconds: float


class ExplainResponse(msgspec.Struct, omit_defaults=True):
    """An explanation: of a text `features`, of a translation also its tokens, of an image `patches` and `overlay`.

    `influence` has a row for each feature and a column for each token of the translation; `overlay` is a PNG in base64.
    The methods `attention` and `gradients` also weigh each of a text's `tokens`; `attention` is of that method.
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
    """A request, decoded."""

    id: str
    parameters: Mapping[str, object]
    arrays: Arrays
    outputs: list[InferRequestedOutput]


def header_length(given: str | None, body_bytes: int) -> int | None:
    """The HTTP header's value: None when it is absent, which means JSON alone.

    Raises:
        InvalidRequest: not a number, or more than the body has.
    """
    if given is None:
        return None
    length = number_of(given)
    if length is None or length > body_bytes:
        raise InvalidRequest(f"header {BINARY_HEADER} is {given[:40]!r}, the body has {body_bytes} bytes")
    return length


def read_infer(body: bytes, header_bytes: int | None, specs: Sequence[TensorSpec] | None) -> InferMessage:
    """Decode a request body.

    Args:
        body: all of it.
        header_bytes: from `header_length`.
        specs: the model's inputs; needed only where `header_bytes` is 0.

    Raises:
        InvalidRequest: malformed in any way.
    """
    if header_bytes == 0:
        assert specs is not None
        return InferMessage("", {}, _read_lone_tensor(body, specs), [])
    json_bytes = len(body) if header_bytes is None else header_bytes
    request = read_bounded_json(memoryview(body)[:json_bytes], InferRequest)
    for what, entries in (("inputs", request.inputs), ("outputs", request.outputs)):
        if len(entries) > MAX_TENSORS:
            raise InvalidRequest(f"the request has {len(entries)} {what}, the limit is {MAX_TENSORS}")
    binary = memoryview(body)[json_bytes:]
    arrays: Arrays = {}
    position = 0
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise InvalidRequest(f"tensor {tensor.name!r} is given twice")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            if tensor.data is None:
                raise InvalidRequest(f"tensor {tensor.name!r} has neither data nor binary_data_size")
            arrays[tensor.name] = decode_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            continue
        if tensor.data is not None:
            raise InvalidRequest(f"tensor {tensor.name!r} has data beside binary_data_size; use one of them")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - position:
            raise InvalidRequest(
                f"tensor {tensor.name!r}: binary_data_size is {size!r}, {len(binary) - position} bytes are left"
            )
        part = binary[position : position + size]
        arrays[tensor.name] = decode_raw(tensor.name, tensor.datatype, tensor.shape, part)
        position += size
    if position != len(binary):
        raise InvalidRequest(f"the body has {len(binary) - position} bytes of binary data that belong to no input")
    for output in request.outputs:
        if not isinstance(binary_data := output.parameters.get("binary_data", False), bool):
            raise InvalidRequest(f"output {output.name!r}: binary_data must be true or false, not {binary_data!r}")
    return InferMessage(request.id, request.parameters, arrays, request.outputs)


def _read_lone_tensor(body: bytes, specs: Sequence[TensorSpec]) -> Arrays:
    """The raw body of a model with one input, whose shape follows from the number of bytes."""
    if len(specs) != 1:
        raise InvalidRequest(f"{BINARY_HEADER} 0 is for models with one input; this one has {len(specs)}")
    (spec,) = specs
    if spec.datatype == "BYTES":
        return {spec.name: bytes_array([body])}
    fixed_bytes = NUMPY_OF[spec.datatype].itemsize * math.prod(size for size in spec.shape if size != -1)
    if spec.shape.count(-1) > 1 or fixed_bytes == 0 or len(body) % fixed_bytes:
        raise InvalidRequest(f"{len(body)} bytes do not tell the shape of input {spec.name!r} {list(spec.shape)}")
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
    """Encode a response body.

    Returns:
        the body in pieces, and the length of its JSON part, or None where all of it is JSON.

    Raises:
        InvalidRequest: an output has values that JSON cannot carry, and binary data was not asked for.
    """
    binary_wanted = {output.name: output.parameters.get("binary_data", all_binary) for output in message.outputs}
    response = InferResponse(model, receipt.model_version, [], dict(receipt.as_parameters()), message.id)
    # Within a string the quotation marks would have backslashes before them.
    before, after = msgspec.json.encode(response).split(NO_OUTPUTS)
    pieces, blobs, separator = [before, NO_OUTPUTS[:-1]], list[bytes](), b""
    for name, array in outputs.items():
        tensor, data = InferOutput(name, list(array.shape), DATATYPE_OF_NUMPY[array.dtype]), list[bytes]()
        if binary_wanted.get(name, all_binary):
            blobs.append(encode_raw(array))
            tensor.parameters = {"binary_data_size": len(blobs[-1])}
        else:
            data = [b',"data":', *encode_json(name, array)]
        pieces += [separator, msgspec.json.encode(tensor)[:-1], *data, b"}"]
        separator = b","
    pieces += [b"]", after]
    return [*pieces, *blobs], sum(map(len, pieces)) if blobs else None


def explain_response(model: str, request_id: str, explanation: Explanation, receipt: Receipt) -> ExplainResponse:
    """An explanation as a document."""
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
