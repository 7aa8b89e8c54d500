"""Tests of `export/studies/`."""
