"""Tests of `export/conversion/sensitivity/`."""
