"""Converts wire messages to domain types and back; only these modules know protobuf messages, gRPC and HTTP."""
