"""What the server finds out about a model before it serves it."""
