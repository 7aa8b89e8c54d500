"""Data sets: readers, tokenizers and what changes texts for training."""
