"""Tests of `export/training/fine_tuning/`."""
