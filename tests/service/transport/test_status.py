"""Every domain error has its two codes, in one table."""

from service import errors
from service.errors import HeedError
from service.transport.status import STATUS_OF


def test_every_error_class_is_in_the_table() -> None:
    """A new class cannot be forgotten."""
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeedError)}
    assert classes - {HeedError} == set(STATUS_OF)


def test_http_and_grpc_agree_on_whose_fault_it_is() -> None:
    """4xx goes with the client's codes, 5xx with the server's."""
    clients = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
    for status in STATUS_OF.values():
        assert (status.http < 500) == (status.grpc.name in clients)
