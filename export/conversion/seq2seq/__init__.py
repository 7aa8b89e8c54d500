"""Loads Hugging Face encoder-decoder models as sources for conversion: weights, tokenizers, search settings."""
