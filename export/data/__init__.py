"""Data sets, one module per task, tokenizers, and augmentation of training texts."""
