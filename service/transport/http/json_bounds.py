"""Bounds on what a JSON document may hold, checked before it is decoded.

JSON is decoded under the interpreter's lock: until a call of the decoder returns, no other thread runs. What it costs
depends on what the document holds and not only on its bytes, so the parts that cost are counted first, in slices, each
of which takes well below a millisecond. Characters within strings are counted too; the bounds are far above what texts
have.
"""

from typing import NamedTuple, TypeVar

from service.errors import InvalidRequest, TooLarge
from service.tasks.hub_messages import read_json

MAX_JSON_BYTES = 4 * 2**20
# Shorter documents are decoded within 10 ms whatever they hold.
MAX_UNCHECKED_BYTES = 16 * 1024
SLICE_BYTES = 64 * 1024

DIGIT, EXPONENT, OTHER = b"0", b"e", b"."
# Each byte becomes one of a few, so that runs of digits can be found by counting a text.
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
    """At most so many of something that is recognised by a few bytes, after `CLASS_OF`."""

    pattern: bytes
    limit: int
    what: str


# Limits from what each takes to decode on one core, in microseconds: 0.05 for a number, 0.1 for a string, 0.3 for a key
# or a list, 12 for a number of 19 digits or more with an exponent, 1 for 40 digits of a longer one. A number that lies
# across two slices may escape being counted, but there are at most 64 such places.
BOUNDS = (
    Bound(b",", 200_000, "values; send large tensors as binary data"),
    Bound(b"[", 32_768, "lists and objects; data may be flat"),
    Bound(b":", 65_536, "keys"),
    Bound(b"\\", 524_288, "escaped characters"),
    Bound(DIGIT * 40, 100, "times 40 digits in a row"),
    Bound(DIGIT * 19 + EXPONENT, 1_000, "numbers of 19 digits or more with an exponent"),
)


def check_json(document: memoryview, max_bytes: int = MAX_JSON_BYTES) -> None:
    """Refuse a document that would take long to decode.

    Raises:
        TooLarge: it has too many bytes.
        InvalidRequest: it holds too many of something; the text names the limit.
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


def read_bounded_json(document: bytes | memoryview, kind: type[T], max_bytes: int = MAX_JSON_BYTES) -> T:
    """A JSON document of the given form, if it is cheap enough to decode.

    Raises:
        InvalidRequest: it is not, or says what is wrong, and where.
    """
    check_json(memoryview(document), max_bytes)
    return read_json(document, kind)
