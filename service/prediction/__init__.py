"""One request, from its inputs to its answer and receipt."""
