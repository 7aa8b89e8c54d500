"""The tests mirror the folders; `python -m tests` runs them all."""
