"""Maps each domain error to its gRPC code and its HTTP status."""

from typing import NamedTuple

from grpc import StatusCode

from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    HeedError,
    InvalidRequest,
    Malformed,
    NotFound,
    Overloaded,
    TooLarge,
    TooSlow,
    Unavailable,
    Unsupported,
)


class Status(NamedTuple):
    """The gRPC code and the HTTP status of an error."""

    grpc: StatusCode
    http: int


STATUS_OF: dict[type[HeedError], Status] = {
    InvalidRequest: Status(StatusCode.INVALID_ARGUMENT, 400),
    # gRPC itself answers a message above its limit with this code.
    Malformed: Status(StatusCode.INVALID_ARGUMENT, 400),
    TooLarge: Status(StatusCode.RESOURCE_EXHAUSTED, 413),
    TooSlow: Status(StatusCode.RESOURCE_EXHAUSTED, 408),
    NotFound: Status(StatusCode.NOT_FOUND, 404),
    Unavailable: Status(StatusCode.UNAVAILABLE, 503),
    Overloaded: Status(StatusCode.RESOURCE_EXHAUSTED, 429),
    DeadlineExceeded: Status(StatusCode.DEADLINE_EXCEEDED, 504),
    Unsupported: Status(StatusCode.UNIMPLEMENTED, 501),
    EngineFailed: Status(StatusCode.INTERNAL, 500),
}
INTERNAL = Status(StatusCode.INTERNAL, 500)


def internal_error_text(request_id: str) -> str:
    """Return the error text for an unexpected error; the log has the details under the same request id."""
    return f"internal error; request id {request_id}"
