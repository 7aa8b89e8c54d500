"""Measures how far int8 answers change with the other items of their batch."""
