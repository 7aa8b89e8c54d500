"""Tests of `export/conversion/`."""
