"""HTTP responses: bodies in one piece or several, events, headers."""

import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from service.prediction.messages import Receipt
from service.transport.http.responses import (
    MAX_UNCOUNTED_BYTES,
    PIECE_BYTES,
    error_response,
    num_body_bytes,
    pieces_response,
    readiness_response,
    receipt_headers,
    server_sent_event,
)


async def sent_by(response: Response) -> list[Message]:
    """Return the ASGI messages of a response."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError

    await response({"type": "http"}, receive, send)
    return messages


async def test_short_pieces_are_joined() -> None:
    """They become one message, with headers of their own."""
    response = pieces_response([b"ab", b"c"], "application/json", {"x-key": "1"})
    start, body = await sent_by(response)
    assert dict(start["headers"])[b"x-key"] == b"1"
    assert dict(start["headers"])[b"content-length"] == b"3"
    assert body["body"] == b"abc"
    assert num_body_bytes(response) == 3


async def test_long_pieces_are_sent_in_bounded_steps() -> None:
    """No step is longer than `PIECE_BYTES`, and the steps together are the body."""
    pieces = [b"x" * (PIECE_BYTES + 1), b"y" * 10]
    response = pieces_response(pieces, "application/octet-stream")
    start, *steps = await sent_by(response)
    assert dict(start["headers"])[b"content-length"] == str(PIECE_BYTES + 11).encode()
    assert [len(step["body"]) for step in steps] == [PIECE_BYTES, 1, 10, 0]
    assert [step["more_body"] for step in steps] == [True, True, True, False]
    assert b"".join(bytes(step["body"]) for step in steps) == b"".join(pieces)
    assert num_body_bytes(response) == PIECE_BYTES + 11 > MAX_UNCOUNTED_BYTES


def test_a_stream_holds_no_body() -> None:
    """Its size is unknown, and it is never in memory as a whole."""

    def events() -> Iterator[bytes]:
        yield b"x" * MAX_UNCOUNTED_BYTES * 2

    assert num_body_bytes(StreamingResponse(events())) == 0


def test_readiness_sets_the_status() -> None:
    """Ready is 200, not ready is 503; the document is the same."""
    for ready, status in ((True, 200), (False, 503)):
        document: dict[str, Any] = {"ready": ready, "reason": None}
        response = readiness_response(document)
        assert (response.status_code, json.loads(response.body)) == (status, document)


def test_errors_and_events_are_json() -> None:
    """An error is an object with one key; an event is one line and an empty one."""
    assert json.loads(error_response(404, 'no "x"').body) == {"error": 'no "x"'}
    assert server_sent_event({"text": "a\nb"}) == b'data: {"text":"a\\nb"}\n\n'


def test_a_receipt_becomes_headers() -> None:
    """Each field has a header: dashes instead of underscores, lower case, the version too."""
    headers = receipt_headers(Receipt("3", 1, 2, 3, 4, 5, 6, 7, truncated=True))
    assert headers["x-heed-model-version"] == "3"
    assert headers["x-heed-preprocess-us"] == "1"
    assert headers["x-heed-truncated"] == "true"
    assert len(headers) == 9
