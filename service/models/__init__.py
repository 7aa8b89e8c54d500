"""From a model's files to something proved: what the server finds out about a graph before it serves it."""
