"""Limits on the content of a JSON document, checked before it is decoded.

The decoder holds the interpreter's lock: no other thread runs until it returns. Its time depends on the content and not
only on the number of bytes. Therefore the expensive parts are counted first, in slices that take well below a
millisecond each. Characters within strings are counted too; the limits are far above the counts of ordinary texts.
"""

from typing import NamedTuple, TypeVar

from service.errors import InvalidRequest, TooLarge
from service.tasks.hub_messages import read_json

MAX_JSON_BYTES = 4 * 2**20
# Documents up to this size are decoded within 10 ms, whatever they contain.
MAX_UNCHECKED_BYTES = 16 * 1024
SLICE_BYTES = 64 * 1024

DIGIT, EXPONENT = b"0", b"e"
# Maps each byte to one of a few classes, so that a run of digits can be counted as a fixed pattern.
CLASS_OF = bytes.maketrans(
    bytes(range(256)),
    bytes(
        DIGIT[0]
        if byte in b"0123456789."
        else EXPONENT[0]
        if byte in b"eE"
        else b"["[0]
        if byte in b"[{"
        else byte
        if byte in b",:\\"
        else b"_"[0]
        for byte in range(256)
    ),
)
T = TypeVar("T")


class Bound(NamedTuple):
    """A limit on how often a pattern may occur.

    Attributes:
        pattern: bytes to count, after the mapping by `CLASS_OF`.
        limit: highest count that is allowed.
        what: name of the counted thing in the error's text.
    """

    pattern: bytes
    limit: int
    what: str


# The limits follow from decoding times on one core, in microseconds: 0.05 for a number, 0.1 for a string, 0.3 for a key
# or a list, 12 for a number of 19 digits or more with an exponent, 1 for 40 digits of a longer number. A number across
# the border of two slices may be missed, but there are at most 64 borders.
BOUNDS = (
    Bound(b",", 200_000, "values; send large tensors as binary data"),
    Bound(b"[", 32_768, "lists and objects; data may be flat"),
    Bound(b":", 65_536, "keys"),
    Bound(b"\\", 524_288, "escaped characters"),
    Bound(DIGIT * 40, 100, "times 40 digits in a row"),
    Bound(DIGIT * 19 + EXPONENT, 1_000, "numbers of 19 digits or more with an exponent"),
)


def check_json(document: memoryview, max_bytes: int = MAX_JSON_BYTES) -> None:
    """Check that a document can be decoded quickly.

    Args:
        document: the JSON, undecoded.
        max_bytes: the limit of its size.

    Raises:
        TooLarge: the document has more than `max_bytes`.
        InvalidRequest: the document exceeds one of `BOUNDS`; the text names the limit.
    """
    if len(document) > max_bytes:
        raise TooLarge(
            f"the JSON has {len(document)} bytes, the limit is {max_bytes}; send large tensors as binary data"
        )
    if len(document) <= MAX_UNCHECKED_BYTES:
        return
    counts = [0] * len(BOUNDS)
    for start in range(0, len(document), SLICE_BYTES):
        piece = bytes(document[start : start + SLICE_BYTES]).translate(CLASS_OF)
        for number, (pattern, limit, what) in enumerate(BOUNDS):
            counts[number] += piece.count(pattern)
            if counts[number] > limit:
                raise InvalidRequest(f"the JSON has more than {limit} {what}")


def read_bounded_json(
    document: bytes | memoryview, kind: type[T], max_bytes: int = MAX_JSON_BYTES, whose: str = ""
) -> T:
    """Decode a JSON document after checking its limits.

    Args:
        document: the JSON.
        kind: type to decode to.
        max_bytes: the limit of its size.
        whose: the model that was asked, see `read_json`.

    Raises:
        TooLarge: the document has more than `max_bytes`.
        InvalidRequest: the document exceeds a limit.
        Malformed: it does not have the form of `kind`; the text says where.
    """
    check_json(memoryview(document), max_bytes)
    return read_json(document, kind, whose)
