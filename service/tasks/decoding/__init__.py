"""Decoding of translations: greedy and beam search, and the settings of a model for it."""
