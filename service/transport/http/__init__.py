"""The HTTP APIs: Open Inference Protocol, task API, operators' paths and the playground."""
