"""Converts tensors of the Open Inference Protocol over gRPC: inputs to arrays, and arrays to an answer's bytes.

Python and protobuf hold the interpreter's lock while they convert elements. Long tensors are therefore converted in a
thread and in chunks, so that other threads get the lock in between.
"""

import math
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proto import inference_pb2
from service.errors import InvalidRequest, TooLarge
from service.tensors import DATATYPE_OF_NUMPY, NUMPY_OF, Arrays, bytes_array
from service.transport.grpc.messages import INFER, MAX_UNCHECKED_BYTES, split, varint
from service.transport.request_metadata import MAX_READ_AT_ONCE, MAX_TENSORS, check_parameter_count
from service.transport.tensor_codec import MAX_BYTES_ELEMENTS, MAX_DIMENSIONS, check_header, decode_raw, encode_raw
from service.transport.unoffered import RequestedOutputs, check_tensor_parameters, requested_outputs

Contents = inference_pb2.InferTensorContents
OutputTensor = inference_pb2.ModelInferResponse.InferOutputTensor

# Field of InferTensorContents by datatype; FP16 exists in raw form only.
CONTENTS_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Datatypes whose elements have the same bytes in an array as in a packed field.
PACKED_AS_IN_MEMORY = ("BOOL", "FP32", "FP64")
# Longer inputs and answers are copied in a thread, because the copy takes milliseconds.
MAX_INLINE_BYTES = 2**20
# An answer is copied twice, and once more by gRPC.
MAX_ANSWER_BYTES = 64 * 2**20


class InferMessage(NamedTuple):
    """An inference request; raw contents of a long one are kept outside of protobuf's message, which would copy them.

    Attributes:
        request: the parsed message; it contains raw contents only if it is short.
        raw: raw contents of the inputs, in order: bytes, or slices of the received message.
    """

    request: inference_pb2.ModelInferRequest
    raw: MutableSequence[bytes] | MutableSequence[memoryview]

    @property
    def id(self) -> str:
        """The client's id of the request; empty if it gave none."""
        return self.request.id

    @property
    def model_name(self) -> str:
        """Name of the requested model."""
        return self.request.model_name

    @property
    def model_version(self) -> str:
        """Requested version of the model; empty for the default version."""
        return self.request.model_version


def read_message(message: bytes) -> InferMessage:
    """Parse a request after checking its limits.

    Raises:
        DecodeError, InvalidRequest: the bytes are not an inference request.
        TooLarge: the message exceeds a limit.
    """
    if len(message) <= MAX_UNCHECKED_BYTES:
        request = inference_pb2.ModelInferRequest.FromString(message)
        return InferMessage(request, request.raw_input_contents)
    parts = split(message, INFER)
    return InferMessage(inference_pb2.ModelInferRequest.FromString(parts.parsed), parts.bulk)


def byte_elements_of(request: inference_pb2.ModelInferRequest) -> int:
    """Return the number of elements of a message's BYTES tensors, by their unchecked shapes."""
    shapes = [tensor.shape[:MAX_DIMENSIONS] for tensor in request.inputs if tensor.datatype == "BYTES"]
    return sum(abs(math.prod(shape)) for shape in shapes)


def check_counts(request: inference_pb2.ModelInferRequest) -> None:
    """Check how many tensors and parameters a message has, before they are read.

    Raises:
        InvalidRequest: the message has more of them than a request may have.
    """
    for field, count in (("inputs", len(request.inputs)), ("outputs", len(request.outputs))):
        if count > MAX_TENSORS:
            raise InvalidRequest(f"the request has {count} {field}, the limit is {MAX_TENSORS}")
    check_parameter_count(len(request.parameters))


def read_inputs(message: InferMessage, at_most: int | None = None) -> Arrays | None:
    """Read the input tensors of a message, from its raw or its typed contents.

    Args:
        message: the request.
        at_most: limit of the elements to convert one by one (BYTES tensors and typed contents); other tensors count by
            their bytes. None: no limit.

    Returns:
        The tensors by name, without shared memory with a long message; None if there is more than `at_most`.

    Raises:
        InvalidRequest: the contents of a tensor do not match its datatype and shape.
        Unsupported: a tensor lies in shared memory, or is meant in another way than its datatype says.
    """
    raw, tensors = message.raw, message.request.inputs
    is_raw = len(raw) > 0
    if is_raw and len(raw) != len(tensors):
        for tensor in tensors:
            _check_no_contents(tensor, message.model_name)
        raise InvalidRequest(f"raw_input_contents has {len(raw)} entries for {len(tensors)} inputs")
    arrays: Arrays = {}
    left = math.inf if at_most is None else at_most
    for number, tensor in enumerate(tensors):
        name, datatype = tensor.name, tensor.datatype
        shape: Sequence[int] = tensor.shape
        if name in arrays:
            raise InvalidRequest(f"tensor {name!r} is given twice")
        if given := tensor.parameters:
            check_tensor_parameters("input", name, values_of(given))
        if is_raw and tensor.HasField("contents"):
            _check_no_contents(tensor, message.model_name)
        if len(shape) <= MAX_DIMENSIONS:  # a tensor with more is refused below
            shape = tuple(shape)
            if datatype == "BYTES" or not is_raw:
                left -= abs(math.prod(shape))
            elif at_most is not None and len(raw[number]) > MAX_INLINE_BYTES:
                return None
            if left < 0:
                return None
        if not is_raw:
            arrays[name] = _decode_contents(tensor)
            continue
        array = decode_raw(name, datatype, shape, raw[number])
        # A slice of a message may begin at any address; an engine needs alignment to the element's size.
        is_part = isinstance(raw[number], memoryview) and not array.dtype.hasobject
        arrays[name] = array.copy() if is_part else array
    return arrays


def _check_no_contents(tensor: inference_pb2.ModelInferRequest.InferInputTensor, model_name: str) -> None:
    """Refuse typed contents beside raw ones; an empty message is no contents."""
    if tensor.contents.ByteSize():
        raise InvalidRequest(  # in the words of Triton, which clients compare
            f"contents field must not be specified when using raw_input_contents for {tensor.name!r} for model"
            f" {model_name!r}; use one of them"
        )


def _decode_contents(tensor: inference_pb2.ModelInferRequest.InferInputTensor) -> NDArray[Any]:
    count = check_header(tensor.name, tensor.datatype, tensor.shape)
    if tensor.datatype not in CONTENTS_OF:
        raise InvalidRequest(f"tensor {tensor.name!r}: {tensor.datatype} travels only in raw_input_contents")
    field = CONTENTS_OF[tensor.datatype]
    elements = getattr(tensor.contents, field)
    if other := [known.name for known, _ in tensor.contents.ListFields() if known.name != field]:
        raise InvalidRequest(f"tensor {tensor.name!r}: {tensor.datatype} belongs in {field}, not in {', '.join(other)}")
    if len(elements) != count:
        raise InvalidRequest(f"tensor {tensor.name!r}: {len(elements)} elements, but its shape takes {count}")
    if tensor.datatype == "BYTES" and count > MAX_BYTES_ELEMENTS:
        raise TooLarge(f"tensor {tensor.name!r}: {count} BYTES elements, the limit is {MAX_BYTES_ELEMENTS}")
    try:
        if count <= MAX_READ_AT_ONCE:
            return _array(elements, tensor.datatype).reshape(tensor.shape)
        chunks = [
            _array(elements[start : start + MAX_READ_AT_ONCE], tensor.datatype)
            for start in range(0, count, MAX_READ_AT_ONCE)
        ]
    except OverflowError:
        raise InvalidRequest(f"tensor {tensor.name!r}: a number lies outside the range of {tensor.datatype}") from None
    return np.concatenate(chunks).reshape(tensor.shape)


def _array(elements: Sequence[Any], datatype: str) -> NDArray[Any]:
    return bytes_array(elements) if datatype == "BYTES" else np.array(elements, dtype=NUMPY_OF[datatype])


def is_raw_only(outputs: Arrays) -> bool:
    """Whether an array has no typed form, so that all must be sent in raw form."""
    return any(DATATYPE_OF_NUMPY[array.dtype] not in CONTENTS_OF for array in outputs.values())


def is_short(outputs: Arrays, *, raw: bool) -> bool:
    """Whether the arrays are short enough to be converted without a thread.

    Raises:
        TooLarge: the answer would have more bytes than an answer may have.
    """
    num_bytes, num_elements = 0, 0
    for array in outputs.values():
        num_bytes += array.nbytes
        if not raw or array.dtype.hasobject:
            num_elements += array.size
    if num_bytes > MAX_ANSWER_BYTES:
        raise TooLarge(f"the answer has {num_bytes} bytes, the limit is {MAX_ANSWER_BYTES}; ask for fewer rows")
    return num_bytes <= MAX_INLINE_BYTES and num_elements <= MAX_READ_AT_ONCE


def write_outputs(response: inference_pb2.ModelInferResponse, outputs: Arrays, *, raw: bool) -> None:
    """Add the output tensors to a response, in raw or in typed form."""
    for name, array in outputs.items():
        datatype = DATATYPE_OF_NUMPY[array.dtype]
        tensor = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(encode_raw(array))
        else:
            getattr(tensor.contents, CONTENTS_OF[datatype]).extend(array.ravel().tolist())


def long_answer(response: inference_pb2.ModelInferResponse, outputs: Arrays, *, raw: bool) -> bytes:
    """Serialize a response with its output tensors piece by piece; equals `write_outputs` followed by serialization.

    Args:
        response: the response without its tensors.
        outputs: output tensors by name.
        raw: whether tensors are sent in raw form.

    Raises:
        TooLarge: the answer would have more bytes than an answer may have.
    """
    pieces = [response.SerializeToString()]
    for name, array in outputs.items():
        datatype = DATATYPE_OF_NUMPY[array.dtype]
        tensor = [OutputTensor(name=name, datatype=datatype, shape=array.shape).SerializeToString()]
        if not raw:
            tensor += _field(OutputTensor.CONTENTS_FIELD_NUMBER, list(_typed_pieces(array, datatype)))
        pieces += _field(inference_pb2.ModelInferResponse.OUTPUTS_FIELD_NUMBER, tensor)
    if raw:
        for array in outputs.values():
            pieces += _field(inference_pb2.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER, _raw_pieces(array))
    num_bytes = sum(map(len, pieces))
    if num_bytes > MAX_ANSWER_BYTES:
        raise TooLarge(f"the answer has {num_bytes} bytes, the limit is {MAX_ANSWER_BYTES}; ask for fewer rows")
    return b"".join(pieces)


def _field(number: int, pieces: list[bytes]) -> list[bytes]:
    """Encode a length-delimited field; its contents are the concatenated pieces."""
    return [varint(number << 3 | 2), varint(sum(map(len, pieces))), *pieces]


def _raw_pieces(array: NDArray[Any]) -> list[bytes]:
    """Encode the raw form in pieces, so that other threads get the lock in between and when the pieces are joined."""
    at_once = MAX_READ_AT_ONCE if array.dtype.hasobject else MAX_INLINE_BYTES // array.itemsize
    flat = array.ravel()
    return [encode_raw(flat[start : start + at_once]) for start in range(0, flat.size, at_once)]


def _typed_pieces(array: NDArray[Any], datatype: str) -> Iterator[bytes]:
    """Encode the typed form as messages of a few elements each; protobuf merges the concatenated messages."""
    field = CONTENTS_OF[datatype]
    if datatype in PACKED_AS_IN_MEMORY:
        yield from _field(Contents.DESCRIPTOR.fields_by_name[field].number, _raw_pieces(array))
        return
    flat = array.ravel()
    for start in range(0, flat.size, MAX_READ_AT_ONCE):
        chunk: Any = {field: flat[start : start + MAX_READ_AT_ONCE].tolist()}
        yield Contents(**chunk).SerializeToString()


def read_outputs(request: inference_pb2.ModelInferRequest) -> RequestedOutputs:
    """Read the outputs that a message asks for; returns and raises what `requested_outputs` does."""
    return requested_outputs([(output.name, values_of(output.parameters)) for output in request.outputs])


def values_of(parameters: Mapping[str, inference_pb2.InferParameter]) -> dict[str, object]:
    """Return the values of a message's parameters by name; None for one without a value."""
    values: dict[str, object] = {}
    for name in parameters:
        chosen = parameters[name].WhichOneof("parameter_choice")
        values[name] = getattr(parameters[name], chosen) if chosen else None
    return values
