"""Responses: JSON documents, errors, long bodies sent in pieces, server-sent events, receipts as headers."""

from collections.abc import Callable, Sequence

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import HeedError
from service.prediction.messages import Receipt

MAX_UNCOUNTED_BYTES = 64 * 1024  # responses up to this size reserve no memory; a connection's buffers take as much
PIECE_BYTES = 256 * 1024  # largest part of a body that is sent in one step


class PiecesResponse(Response):
    """A response whose body is sent piece by piece.

    Joining the pieces would double the memory and hold the interpreter's lock for the time of the copy.

    Args:
        pieces: the body, in order.
        media_type: the content type.
        headers: further headers; content-length is added.
    """

    def __init__(self, pieces: Sequence[bytes], media_type: str, headers: dict[str, str]) -> None:
        self._pieces, self.num_bytes = pieces, sum(map(len, pieces))
        super().__init__(None, 200, headers | {"content-length": str(self.num_bytes)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces; `send` waits until the client has taken most of the pieces before."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            for start in range(0, len(piece), PIECE_BYTES):
                part = memoryview(piece)[start : start + PIECE_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces_response(pieces: Sequence[bytes], media_type: str, headers: dict[str, str] | None = None) -> Response:
    """Build a response from the pieces of its body, joined if they are short together."""
    if sum(map(len, pieces)) <= MAX_UNCOUNTED_BYTES:
        return Response(b"".join(pieces), 200, headers, media_type)
    return PiecesResponse(pieces, media_type, headers or {})


def num_body_bytes(response: Response) -> int:
    """Return the size of a response's body in bytes; 0 for a stream, which is never held as a whole."""
    if isinstance(response, PiecesResponse):
        return response.num_bytes
    return 0 if isinstance(response, StreamingResponse) else len(response.body)


def json_response(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Build a response with a document as JSON."""
    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")


def readiness_response(document: dict[str, object]) -> Response:
    """Build the response of a readiness check: status 200 if the document says `ready`, else 503."""
    return json_response(document, 200 if document["ready"] else 503)


def error_response(status: int, text: str) -> Response:
    """Build an error in the format that the Open Inference Protocol and the Hugging Face API share."""
    return json_response({"error": text}, status)


# Makes the response of an error from its type (`HeedError` itself for an unexpected one), HTTP status and text.
ErrorForm = Callable[[type[HeedError], int, str], Response]


def plain_error(kind: type[HeedError], status: int, text: str) -> Response:
    """Build the response of an error in the form of `error_response`."""
    return error_response(status, text)


def server_sent_event(document: object) -> bytes:
    """Encode a document as one server-sent event (WHATWG HTML, section 9.2)."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def receipt_headers(receipt: Receipt) -> dict[str, str]:
    """Return the receipt as headers, for responses whose body format has no field for it."""
    headers = {
        f"x-heed-{name.replace('_', '-')}": str(value).lower() for name, value in receipt.as_parameters().items()
    }
    return headers | {"x-heed-model-version": receipt.model_version}
