"""Checkpoints of the Hugging Face hub: read without running their code, and checked before they are used."""
