"""The gRPC face: Open Inference Protocol, typed calls, health and reflection."""
