"""Tests of `export/onnx_graphs/`."""
