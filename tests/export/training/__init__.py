"""Tests of `export/training/`."""
