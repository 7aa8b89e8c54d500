"""Tests of `export/data/`."""
