"""Every error that a client may see, free of HTTP and gRPC; `transport/status.py` gives each its two codes.

    HeedError
    ├── InvalidRequest       the request itself is wrong; names the field and the limit
    │   ├── TooLarge         the same, because of its size
    │   └── TooSlow          the client sends its request more slowly than the server waits
    ├── NotFound             no such model, version or path
    ├── Unavailable          right request, but the model or the server cannot answer now
    ├── Overloaded           refused before any work was done; worth trying again later
    ├── DeadlineExceeded     the client's time is over, or cannot be met any more
    ├── Unsupported          part of a protocol that this server does not offer
    └── EngineFailed         the model failed on this very input

Clients read text only from these. Anything else becomes "internal error" with a request id.
"""

# Of a message: gRPC sends it as metadata, in up to 12 bytes a character, and clients take 8 KiB of that.
MAX_MESSAGE_CHARACTERS = 600


def clipped(text: str) -> str:
    """A text that may hold what a client has sent, within the bounds of a message."""
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]} ..."


class HeedError(Exception):
    """Base of all errors whose message is meant for the client.

    Attributes:
        counted: the request that it ended is in the metrics and in the log already.
    """

    counted = False

    def __init__(self, message: str) -> None:
        super().__init__(clipped(message))


class InvalidRequest(HeedError):
    """The request cannot be understood or breaks a limit."""


class TooLarge(InvalidRequest):
    """The request is larger than the server takes."""


class TooSlow(InvalidRequest):
    """The client sends its request more slowly than the server waits."""


class NotFound(HeedError):
    """The named thing does not exist here."""


class Unavailable(HeedError):
    """The model or the server cannot answer at the moment."""


class Overloaded(HeedError):
    """The queue is full; nothing was computed.

    Attributes:
        retry_after_s: when the work that is queued now will be done, by estimate.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(HeedError):
    """The client's deadline passed, or the work queued before it cannot be done in time."""


class Unsupported(HeedError):
    """Known to the protocol, not offered by this server."""


class EngineFailed(HeedError):
    """The engine raised on this input alone; its neighbours in the batch were answered."""
