"""All errors that clients may see, independent of HTTP and gRPC; `transport/status.py` maps them to status codes.

    HeedError
    ├── InvalidRequest       the request itself is wrong; names the field and the limit
    │   ├── Malformed        its body cannot be read as a message
    │   ├── TooLarge         the same, because of its size
    │   └── TooSlow          the client sends its request more slowly than the server waits
    ├── NotFound             no such model, version or path
    ├── Unavailable          right request, but the model or the server cannot answer now
    ├── Overloaded           refused before any work was done; worth trying again later
    ├── DeadlineExceeded     the client's time is over, or cannot be met any more
    ├── Unsupported          part of a protocol that this server does not offer
    └── EngineFailed         the model failed on this very input

Clients get the texts of these errors only. Any other error becomes "internal error" with a request id.
"""

# Length of a message: gRPC sends it as metadata with up to 12 bytes per character, and clients accept 8 KiB of
# metadata.
MAX_MESSAGE_CHARACTERS = 600


def clipped(text: str) -> str:
    """Cut a text that may contain a client's input to the maximum length of a message."""
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]} ..."


class HeedError(Exception):
    """Base of all errors whose message is meant for the client.

    Attributes:
        counted: whether the failed request has already been counted and logged.
    """

    counted = False

    def __init__(self, message: str) -> None:
        super().__init__(clipped(message))


class InvalidRequest(HeedError):
    """The request is malformed or exceeds a limit."""


class Malformed(InvalidRequest):
    """The body of the request cannot be read as a message."""


class TooLarge(InvalidRequest):
    """The request is larger than the server accepts."""


class TooSlow(InvalidRequest):
    """The client sends its request more slowly than the server waits."""


class NotFound(HeedError):
    """There is no such model, version or path."""


class Unavailable(HeedError):
    """The model or the server cannot answer at the moment."""


class Overloaded(HeedError):
    """The queue is full; nothing was computed.

    Attributes:
        retry_after_s: estimated time until the queued work is done.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(HeedError):
    """The client's deadline has passed, or cannot be met any more."""


class Unsupported(HeedError):
    """The protocol defines this, but the server does not support it."""


class EngineFailed(HeedError):
    """The engine failed on this input; other requests of the same batch were answered."""
