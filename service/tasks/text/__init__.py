"""The tasks that read texts with an encoder: tokenization, batches of tokens, and the answer of each task."""
