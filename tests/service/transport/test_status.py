"""Every domain error has an HTTP status and a gRPC code."""

from service import errors
from service.errors import HeedError
from service.transport.status import STATUS_OF


def test_every_error_class_is_in_the_table() -> None:
    """A new error class cannot be forgotten."""
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeedError)}
    assert classes - {HeedError} == set(STATUS_OF)


def test_http_and_grpc_agree_on_client_and_server_errors() -> None:
    """4xx goes with gRPC's codes for clients, 5xx with those for servers."""
    clients = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
    for status in STATUS_OF.values():
        assert (status.http < 500) == (status.grpc.name in clients)
