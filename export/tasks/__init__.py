"""The tasks that `python -m export` knows, one module per task, and training runs of them."""
