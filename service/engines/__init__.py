"""Arrays in, arrays out: ONNX Runtime sessions, decoding, devices, and preemptible calls."""
