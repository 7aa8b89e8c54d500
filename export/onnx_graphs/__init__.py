"""PyTorch networks to ONNX graphs, and passes over these."""
