"""The HTTP face: Open Inference Protocol, task API, operators' paths and the playground."""
