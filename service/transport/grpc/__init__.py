"""The gRPC APIs: Open Inference Protocol, typed calls, health and reflection."""
