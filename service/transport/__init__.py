"""Wire messages to domain types and back: the only rooms that know protobuf, gRPC and HTTP."""

from importlib.metadata import PackageNotFoundError, version

SERVER_NAME = "heed"


def server_version() -> str:
    """The version of the installed package, as the metadata calls tell it."""
    try:
        return version("heed")
    except PackageNotFoundError:
        return "unknown"
