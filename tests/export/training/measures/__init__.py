"""Tests of `export/training/measures/`."""
