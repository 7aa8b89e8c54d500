"""From data to a model folder: everything that needs torch."""
