"""Wire messages to domain types and back: the only rooms that know protobuf, gRPC and HTTP."""

SERVER_NAME = "heed"
