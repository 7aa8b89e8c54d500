"""Limits on the content of a gRPC message, checked on its bytes before protobuf parses them.

Protobuf parses a message in one step and holds the interpreter's lock meanwhile: 16 MiB of empty inputs, parameters or
strings take a second or more. Large tensors and images are cheap, because each is one field. These may therefore be
large; the rest of a message is limited in bytes and in number of fields.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from service.errors import InvalidRequest, TooLarge

# Limit for a message without its raw tensors and images. The worst case within it takes protobuf about 15 ms.
MAX_PARSED_BYTES = 2**20
# Limit for a message and its inputs together. Only messages above MAX_UNCHECKED_BYTES are counted.
MAX_FIELDS = 8192
# Limit for calls that read a state or metadata: their messages hold a name and a version.
MAX_CONTROL_BYTES = 16 * 2**10
# A message up to this size is parsed without a check: that takes at most 3 ms, whatever it contains.
MAX_UNCHECKED_BYTES = 64 * 2**10

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10
PIECES_OF_PARSED = "everything but raw tensors and images"


@dataclass(frozen=True)
class MessageLimits:
    """Limits on the content of a call's message.

    Attributes:
        max_bytes: size of the whole message; None if only gRPC's own limit applies.
        bulk_fields: numbers of the fields that may be large, because protobuf does not parse their contents.
        counted_field: number of a message field whose own fields are counted as well; 0 for none.
    """

    max_bytes: int | None = None
    bulk_fields: frozenset[int] = frozenset()
    counted_field: int = 0

    def check(self, message: bytes) -> None:
        """Check a message before it is parsed.

        Raises:
            TooLarge: the message exceeds a limit.
            InvalidRequest: the bytes are not a protobuf message.
        """
        if self.max_bytes is not None and len(message) > self.max_bytes:
            raise TooLarge(f"the message has {len(message)} bytes, the limit of this call is {self.max_bytes}")
        if len(message) > MAX_UNCHECKED_BYTES:
            split(message, self)


@dataclass(frozen=True)
class SplitMessage:
    """A message in two parts.

    Attributes:
        parsed: the fields that protobuf has to parse, which form a message themselves.
        bulk: contents of the bulk fields, in the order of the message.
    """

    parsed: bytes
    bulk: list[memoryview]


CONTROL = MessageLimits(max_bytes=MAX_CONTROL_BYTES)
TEXT = MessageLimits(max_bytes=MAX_PARSED_BYTES)
IMAGE = MessageLimits(bulk_fields=frozenset({3}))  # ClassifyImageRequest.image
EXPLAIN = MessageLimits(bulk_fields=frozenset({4}))  # ExplainRequest.image
INFER = MessageLimits(bulk_fields=frozenset({7}), counted_field=5)  # ModelInferRequest: raw_input_contents, inputs


def split(message: bytes, limits: MessageLimits) -> SplitMessage:
    """Take the bulk fields out of a message, without copying them.

    Raises:
        TooLarge: the message has too many fields, or too many bytes outside of the bulk fields.
        InvalidRequest: the bytes are not a protobuf message.
    """
    view = memoryview(message)
    bulk: list[memoryview] = []
    parsed: list[memoryview] = []
    parsed_bytes, num_fields = 0, 0
    for number, start, contents, end in _fields(message, 0, len(message)):
        num_fields += 1
        if number in limits.bulk_fields:
            bulk.append(view[contents:end])
        else:
            parsed.append(view[start:end])
            parsed_bytes += end - start
            if parsed_bytes > MAX_PARSED_BYTES:
                raise TooLarge(f"{PIECES_OF_PARSED} of a message may have at most {MAX_PARSED_BYTES} bytes")
            if number == limits.counted_field:
                for _ in _fields(message, contents, end):
                    num_fields += 1
                    if num_fields > MAX_FIELDS:
                        break
        if num_fields > MAX_FIELDS:
            raise TooLarge(f"a message of more than {MAX_UNCHECKED_BYTES} bytes may have at most {MAX_FIELDS} fields")
    return SplitMessage(b"".join(parsed), bulk)


def _fields(message: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message: number, start of the field, start of its contents, end."""
    while position < end:
        # Varints of one byte are read inline: with a call for each, 8,192 fields take twice as long.
        start, tag = position, message[position]
        position += 1
        if tag > 0x7F:
            tag, position = _read_varint(message, start)
        wire_type, contents = tag & 7, position
        if wire_type == LENGTH_DELIMITED:
            if position < end and (length := message[position]) <= 0x7F:
                contents += 1
            else:
                length, contents = _read_varint(message, position)
            position = contents + length
        elif wire_type == VARINT:
            _, position = _read_varint(message, position)
        elif wire_type == FIXED32:
            position += 4
        elif wire_type == FIXED64:
            position += 8
        else:
            raise InvalidRequest(
                f"the message is not a request of this call: field {tag >> 3} has wire type {wire_type}"
            )
        if position > end:
            raise InvalidRequest(f"the message is not a request of this call: it ends within field {tag >> 3}")
        yield tag >> 3, start, contents, position


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Read a varint; return its value and the position after it."""
    value, shift = 0, 0
    for byte in message[position : position + MAX_VARINT_BYTES]:
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise InvalidRequest("the message is not a request of this call: a number does not end")


def varint(value: int) -> bytes:
    """Encode a number as a protobuf varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
