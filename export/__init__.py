"""From data to a model folder: everything that needs torch (see docs/design.md for the rooms)."""
