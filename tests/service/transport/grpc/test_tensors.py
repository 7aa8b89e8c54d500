"""Tensors in the messages of the Open Inference Protocol."""

import numpy as np
import pytest

from proto import inference_pb2
from service.errors import InvalidRequest, TooLarge
from service.tensors import DTYPE_OF, Arrays, bytes_array
from service.transport.grpc.messages import MAX_UNCHECKED_BYTES
from service.transport.grpc.tensors import (
    CONTENTS_OF,
    MAX_ANSWER_BYTES,
    MAX_INLINE_BYTES,
    InferMessage,
    is_short,
    long_answer,
    read_inputs,
    read_message,
    write_outputs,
)
from service.transport.request_metadata import MAX_READ_AT_ONCE
from service.transport.tensor_codec import MAX_BYTES_ELEMENTS, decode_raw, encode_raw

FLOATS, TEXTS = np.arange(6, dtype=np.float32).reshape(2, 3), bytes_array([b"one", b"two"])


def message(*, raw: bool) -> inference_pb2.ModelInferRequest:
    """Make a message of six numbers and two texts."""
    request = inference_pb2.ModelInferRequest(model_name="any")
    floats = request.inputs.add(name="floats", datatype="FP32", shape=FLOATS.shape)
    texts = request.inputs.add(name="texts", datatype="BYTES", shape=TEXTS.shape)
    if raw:
        request.raw_input_contents.extend([encode_raw(FLOATS), encode_raw(TEXTS)])
    else:
        floats.contents.fp32_contents.extend(FLOATS.ravel().tolist())
        texts.contents.bytes_contents.extend(TEXTS.tolist())
    return request


@pytest.mark.parametrize(("raw", "read_singly"), [(True, 2), (False, 8)])
def test_the_number_of_typed_elements_is_limited(raw: bool, read_singly: int) -> None:
    """Texts and typed numbers count, because they are read one by one."""
    request = message(raw=raw)
    for at_most in (read_singly, None):
        arrays = read_inputs(InferMessage(request, request.raw_input_contents), at_most)
        assert arrays is not None
        assert arrays["floats"].tolist() == FLOATS.tolist()
        assert arrays["texts"].tolist() == TEXTS.tolist()
    assert read_inputs(InferMessage(request, request.raw_input_contents), read_singly - 1) is None


def test_long_tensors_are_copied_out_of_their_message() -> None:
    """A thread copies them to aligned memory; the message is freed with its parts."""
    floats = np.arange(MAX_INLINE_BYTES // 4 + 1, dtype=np.float32)
    for name in ("x", "xy", "xyz", "wxyz"):  # wherever the tensor lies in the message
        request = inference_pb2.ModelInferRequest(model_name=name, raw_input_contents=[floats.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=floats.shape)
        message = read_message(request.SerializeToString())
        assert read_inputs(message, len(floats)) is None
        inputs = read_inputs(message)
        assert inputs is not None
        assert np.array_equal(inputs["x"], floats)
        assert inputs["x"].flags.aligned
        assert not np.shares_memory(inputs["x"], np.frombuffer(message.raw[0], np.uint8))


def arrays_of_all_types(num_rows: int) -> dict[str, Arrays]:
    """Make one array of every datatype, with its extreme values."""
    arrays: dict[str, Arrays] = {}
    for datatype, dtype in DTYPE_OF.items():
        if datatype == "BYTES":
            elements = bytes_array([b"", b"text", b"\0\xff"] * num_rows)
        elif dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            elements = np.array([bounds.min, 1, bounds.max] * num_rows, dtype)
        elif dtype.kind == "b":
            elements = np.array([True, False, True] * num_rows)
        else:
            elements = np.array([-1.5, np.inf, 0.25] * num_rows, dtype)
        arrays[datatype] = {"first": elements.reshape(num_rows, 3), "second": elements[:3]}
    return arrays


@pytest.mark.parametrize(
    ("datatype", "raw"),
    [*((datatype, True) for datatype in DTYPE_OF), *((datatype, False) for datatype in CONTENTS_OF)],
)
def test_a_long_answer_equals_the_message_of_protobuf(datatype: str, raw: bool) -> None:
    """An answer written in pieces parses like one that protobuf has serialized."""
    outputs = arrays_of_all_types(num_rows=MAX_READ_AT_ONCE // 2)[datatype]
    whole = inference_pb2.ModelInferResponse(model_name="any", id="one")
    pieces = long_answer(whole, outputs, raw=raw)
    write_outputs(whole, outputs, raw=raw)
    assert inference_pb2.ModelInferResponse.FromString(pieces) == whole


def test_only_short_answers_are_written_in_the_event_loop() -> None:
    """Typed and BYTES elements count one by one, raw tensors by bytes; too large answers are refused."""
    many, few = np.zeros(MAX_READ_AT_ONCE + 1, np.float32), np.zeros(MAX_READ_AT_ONCE, np.float32)
    assert is_short({"y": few}, raw=False)
    assert not is_short({"y": many}, raw=False)
    assert is_short({"y": many}, raw=True)
    assert not is_short({"y": bytes_array([b""] * (MAX_READ_AT_ONCE + 1))}, raw=True)
    assert not is_short({"y": np.zeros(MAX_INLINE_BYTES + 1, np.uint8)}, raw=True)
    with pytest.raises(TooLarge, match=str(MAX_ANSWER_BYTES)):
        is_short({"y": np.broadcast_to(np.uint8(0), MAX_ANSWER_BYTES + 1)}, raw=True)


def test_the_number_of_texts_in_a_tensor_is_bounded() -> None:
    """BYTES elements are refused by their shape, before they are read."""
    count = MAX_BYTES_ELEMENTS + 1
    with pytest.raises(TooLarge, match=f"{count} BYTES elements, the limit is {MAX_BYTES_ELEMENTS}"):
        decode_raw("texts", "BYTES", (count,), b"")
    request = inference_pb2.ModelInferRequest()
    request.inputs.add(name="texts", datatype="BYTES", shape=[count]).contents.bytes_contents.extend([b""] * count)
    with pytest.raises(TooLarge, match=f"{count} BYTES elements, the limit is {MAX_BYTES_ELEMENTS}"):
        read_inputs(InferMessage(request, []))


def test_typed_elements_are_read_in_pieces() -> None:
    """Tensors longer than one piece are read whole, and an element out of range in a later piece is refused."""
    numbers = np.arange(2 * MAX_READ_AT_ONCE + 7, dtype=np.int64) % 100
    request = inference_pb2.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="INT8", shape=numbers.shape)
    tensor.contents.int_contents.extend(numbers.tolist())
    arrays = read_inputs(InferMessage(request, []))
    assert arrays is not None
    assert arrays["x"].dtype == np.int8
    assert np.array_equal(arrays["x"], numbers)
    tensor.contents.int_contents[-1] = 128
    with pytest.raises(InvalidRequest, match="outside the range of INT8"):
        read_inputs(InferMessage(request, []))


def test_raw_tensors_of_a_large_message_are_held_once() -> None:
    """Large raw contents are cut out of the message, aligned for their elements."""
    floats = np.arange(2 * MAX_UNCHECKED_BYTES, dtype=np.float64)
    request = inference_pb2.ModelInferRequest(model_name="any", id="one")
    request.inputs.add(name="x", datatype="FP64", shape=floats.shape)
    request.raw_input_contents.append(floats.tobytes())
    message = read_message(request.SerializeToString())
    assert (message.model_name, message.id, len(message.request.raw_input_contents)) == ("any", "one", 0)
    arrays = read_inputs(message)
    assert arrays is not None
    assert np.array_equal(arrays["x"], floats)
    assert arrays["x"].flags.aligned
