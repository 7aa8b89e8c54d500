"""The networks that are trained and exported, in PyTorch."""
