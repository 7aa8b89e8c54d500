"""Reports and measurements of models."""
