"""Bounds on gRPC messages, checked before protobuf parses them."""

import pytest

from proto import heed_pb2, inference_pb2
from service.errors import InvalidRequest, TooLarge
from service.transport.grpc.messages import (
    CONTROL,
    EXPLAIN,
    IMAGE,
    INFER,
    MAX_CONTROL_BYTES,
    MAX_FIELDS,
    MAX_PARSED_BYTES,
    MAX_UNCHECKED_BYTES,
    TEXT,
    MessageLimits,
    split,
    varint,
)

MEBIBYTE = 2**20


def field(number: int, contents: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(contents)) + contents


def infer_request(*, raw_bytes: int = 0) -> inference_pb2.ModelInferRequest:
    """A request with every kind of field, and raw contents of some size."""
    request = inference_pb2.ModelInferRequest(model_name="m", model_version="1", id="i")
    request.parameters["length_penalty"].double_param = 0.5
    request.parameters["timeout"].int64_param = 2**40
    for name in ("a", "b"):
        tensor = request.inputs.add(name=name, datatype="UINT8", shape=[raw_bytes, 1])
        tensor.parameters["binary_data_size"].int64_param = raw_bytes
    request.outputs.add(name="y")
    request.raw_input_contents.extend([b"a" * raw_bytes, b"b" * raw_bytes])
    return request


def test_raw_tensors_are_cut_out_and_the_rest_is_parsed() -> None:
    """A split message holds the raw contents as they were sent and, beside them, every other field."""
    request = infer_request(raw_bytes=MEBIBYTE)
    parts = split(request.SerializeToString(), INFER)
    assert [bytes(contents) for contents in parts.bulk] == list(request.raw_input_contents)
    rest = inference_pb2.ModelInferRequest.FromString(parts.parsed)
    del request.raw_input_contents[:]
    assert rest == request


@pytest.mark.parametrize(
    "repeated",
    [
        field(5, b""),  # an input of shape []
        field(5, field(1, b"n") + field(2, b"FP32") + field(3, b"\0")),
        field(6, b""),  # a requested output
        field(7, b""),  # empty raw contents
        field(4, b""),  # a parameter
        field(1, b"m"),  # the model's name again and again
        b"\x78\x01",  # a field that the message does not have
    ],
)
def test_a_large_message_has_a_bounded_number_of_fields(repeated: bytes) -> None:
    """Millions of small fields are refused after the first few thousand."""
    count = MAX_UNCHECKED_BYTES // len(repeated) + MAX_FIELDS
    with pytest.raises(TooLarge, match=f"at most {MAX_FIELDS} fields"):
        INFER.check(repeated * count)


@pytest.mark.parametrize("inner", [field(4, field(1, b"key")), field(3, b"\1"), b"\x78\x01"])
def test_fields_within_an_input_are_counted(inner: bytes) -> None:
    """One input with very many parameters is refused as a message with very many inputs is."""
    one_input = field(5, inner * (2 * MAX_FIELDS + MAX_UNCHECKED_BYTES // len(inner)))
    with pytest.raises(TooLarge, match="fields"):
        INFER.check(one_input)


def test_typed_contents_have_a_limit_of_their_own() -> None:
    """Typed elements are refused above one mebibyte, raw ones are not."""
    request = inference_pb2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype="INT32", shape=[MAX_PARSED_BYTES])
    tensor.contents.int_contents.extend([1] * MAX_PARSED_BYTES)
    with pytest.raises(TooLarge, match=f"at most {MAX_PARSED_BYTES} bytes"):
        INFER.check(request.SerializeToString())
    INFER.check(infer_request(raw_bytes=8 * MEBIBYTE).SerializeToString())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (IMAGE, heed_pb2.ClassifyImageRequest(model="m", image=b"i" * 8 * MEBIBYTE)),
        (EXPLAIN, heed_pb2.ExplainRequest(model="m", image=b"i" * 8 * MEBIBYTE)),
        (TEXT, heed_pb2.ClassifyTextRequest(model="m", text="t" * (MEBIBYTE - 100))),
        (TEXT, heed_pb2.TranslateRequest(model="m", text="t" * (MEBIBYTE - 100))),
        (CONTROL, inference_pb2.ModelReadyRequest(name="m" * 256)),
    ],
)
def test_messages_within_the_limits_are_accepted(limits: MessageLimits, message: heed_pb2.ClassifyImageRequest) -> None:
    """Images may be large, texts have a mebibyte, names a few kilobytes."""
    limits.check(message.SerializeToString())


@pytest.mark.parametrize(
    ("limits", "message", "limit"),
    [
        (IMAGE, heed_pb2.ClassifyImageRequest(model="m" * 2 * MEBIBYTE), MAX_PARSED_BYTES),
        (EXPLAIN, heed_pb2.ExplainRequest(text="t" * 2 * MEBIBYTE), MAX_PARSED_BYTES),
        (EXPLAIN, heed_pb2.ExplainRequest(target="t" * 2 * MEBIBYTE), MAX_PARSED_BYTES),
        (TEXT, heed_pb2.TranslateRequest(text="t" * 2 * MEBIBYTE), MAX_PARSED_BYTES),
        (TEXT, heed_pb2.ClassifyTextRequest(model="m" * 2 * MEBIBYTE), MAX_PARSED_BYTES),
        (CONTROL, inference_pb2.ModelMetadataRequest(name="m" * MAX_CONTROL_BYTES), MAX_CONTROL_BYTES),
    ],
)
def test_fields_beyond_a_limit_are_refused(
    limits: MessageLimits, message: heed_pb2.ClassifyImageRequest, limit: int
) -> None:
    """Names, texts and targets of megabytes are refused, and the error says what is allowed."""
    with pytest.raises(TooLarge, match=str(limit)):
        limits.check(message.SerializeToString())


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        (b"\x3a\xff\xff\x7f", "ends within field 7"),
        (b"\x3a", "a number does not end"),
        (b"\x3a" + b"\xff" * 11, "a number does not end"),
        (b"\x0d\x00", "ends within field 1"),
        (b"\x0b", "field 1 has wire type 3"),
    ],
)
def test_bytes_that_are_no_message_are_refused(ending: bytes, why: str) -> None:
    """A message that is cut off or has an impossible field is refused with a reason."""
    with pytest.raises(InvalidRequest, match=why):
        INFER.check(field(7, b"0" * MAX_UNCHECKED_BYTES) + ending)
