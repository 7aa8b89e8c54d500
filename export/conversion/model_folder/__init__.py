"""Puts a model folder into the store: complete, or not at all."""
