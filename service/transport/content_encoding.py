"""Decompresses the bodies of HTTP requests in steps, so that a small body cannot become a large one unnoticed."""

import zlib
from collections.abc import Callable, Sequence

from service.errors import InvalidRequest, TooLarge

GZIP, DEFLATE = "gzip", "deflate"
# Names of encodings (RFC 9110, section 8.4.1); the second name of gzip is an old one.
ENCODINGS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": DEFLATE}
IDENTITY = ("", "identity")
# A body up to this size is decompressed in the event loop: it becomes at most a thousand times as large, in a
# millisecond.
MAX_INLINE_BYTES = 1024
STEP_BYTES = 64 * 2**10  # what one step reads, and what it writes
MAX_MEMBERS = 1024  # a file in gzip's format may consist of several, which may be empty
GZIP_WINDOW, ZLIB_WINDOW, RAW_WINDOW = 31, 15, -15  # zlib's `wbits`


def content_encoding(given: Sequence[str]) -> str | None:
    """Return how a body is compressed; None if it is not.

    Args:
        given: the values of all headers content-encoding.

    Raises:
        InvalidRequest: names the encoding, or says that there are several.
    """
    text = ",".join(given).strip().lower()
    if text in IDENTITY:
        return None
    if (encoding := ENCODINGS.get(text)) is None:
        why = "only one is taken" if "," in text else "it is not offered"
        raise InvalidRequest(f"header content-encoding is {text[:40]!r}: {why}; known are gzip, deflate and identity")
    return encoding


def decompressed(body: bytes, encoding: str, limit_bytes: int, reserve: Callable[[int], None]) -> bytes:
    """Decompress a body; may be called in any thread.

    Args:
        body: the compressed body.
        encoding: result of `content_encoding`.
        limit_bytes: largest decompressed size.
        reserve: called with the decompressed size so far before each step, for the memory budget; may raise.

    Raises:
        InvalidRequest: the body is damaged, ends early, or goes on behind its end.
        TooLarge: the decompressed body is larger than the limit; it is not decompressed further.
    """
    try:
        return b"".join(_pieces(memoryview(body), encoding, limit_bytes, reserve))
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {encoding}, as header content-encoding says: {error}") from None


def _pieces(body: memoryview, encoding: str, limit_bytes: int, reserve: Callable[[int], None]) -> list[bytes]:
    window = GZIP_WINDOW if encoding == GZIP else _window_of_deflate(body)
    stream, pieces, size, num_members = zlib.decompressobj(window), list[bytes](), 0, 1
    position, rest = 0, b""
    while True:
        if not rest:
            rest = bytes(body[position : position + STEP_BYTES])
            position += len(rest)
        if stream.eof:
            if not rest:
                return pieces
            num_members += 1
            if encoding != GZIP or num_members > MAX_MEMBERS:
                if encoding == GZIP:
                    raise InvalidRequest(f"the body consists of more than {MAX_MEMBERS} gzip members")
                raise InvalidRequest("the body has further bytes behind the end of its deflate data")
            stream = zlib.decompressobj(window)
        reserve(min(size + STEP_BYTES, limit_bytes))
        # One byte more than the limit tells a body that is too large.
        piece = stream.decompress(rest, min(STEP_BYTES, limit_bytes + 1 - size))
        size += len(piece)
        if size > limit_bytes:
            raise TooLarge(f"the decompressed body is larger than the limit of {limit_bytes} bytes")
        pieces.append(piece)
        if not rest and not piece and not stream.eof:
            raise InvalidRequest(f"the body ends before the end of its {encoding} data")
        rest = stream.unused_data if stream.eof else stream.unconsumed_tail


def _window_of_deflate(body: memoryview) -> int:
    """Return zlib's `wbits` for deflate: with zlib's header, as RFC 9110 says, or without, as some clients send it."""
    has_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return ZLIB_WINDOW if has_header else RAW_WINDOW
