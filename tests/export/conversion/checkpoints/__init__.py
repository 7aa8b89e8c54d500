"""Tests of `export/conversion/checkpoints/`."""
