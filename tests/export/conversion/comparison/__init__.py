"""Tests of `export/conversion/comparison/`."""
