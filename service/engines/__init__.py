"""Arrays in, arrays out: ONNX Runtime sessions, decoding, devices, and which thread gets a core."""
