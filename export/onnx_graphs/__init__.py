"""Exports PyTorch networks to ONNX graphs, and transforms these graphs."""
