"""Recipes of training: a TOML file each, which `python -m export train` names by its file."""
